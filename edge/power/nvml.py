"""NVML: the energy counter of NVIDIA's boards, through nvidia-ml-py (the extra `nvidia`).

Since Volta the driver counts millijoules of the whole board, memory included, in steps of 20 to
100 ms. Older boards give only their power, which is sampled and integrated. Programs must finish
their work on the GPU before they stamp a window's edges.
"""

from collections.abc import Callable
from contextlib import suppress

from edge.device.nvidia import Gpu, load_nvml, visible_gpus
from edge.errors import EdgeError
from edge.power.polling import PollingMeter, Reading, reason_of

SAMPLING_PERIOD_S = 0.1


class SampledPower:
    """Joules of a board that gives only its power, by the trapezoidal rule between readings."""

    def __init__(self, watts: Callable[[], float], clock_ns: Callable[[], int]) -> None:
        self._watts, self._clock_ns = watts, clock_ns
        self._last_w, self._last_ns = watts(), clock_ns()
        self._joules = 0.0

    def __call__(self) -> float:
        watts, now_ns = self._watts(), self._clock_ns()
        self._joules += (watts + self._last_w) / 2 * (now_ns - self._last_ns) / 1e9
        self._last_w, self._last_ns = watts, now_ns
        return self._joules


class NvmlMeter(PollingMeter):
    """Joules of every board that CUDA_VISIBLE_DEVICES leaves, a rail for each."""

    source = "nvml"
    boundary = "NVIDIA boards, memory included, without CPU and main memory"

    def __init__(self) -> None:
        super().__init__()
        self._counters: dict[str, Callable[[], float]] = {}
        try:
            self._nvml = load_nvml()
            self._open(visible_gpus(self._nvml))
        except Exception as error:  # the package's own errors too
            self.unavailable = reason_of(error, "NVML")

    def start(self) -> None:
        super().start()
        if (boards := len(self._counters)) > 1:
            self._warn(f"{boards} boards are added up; choose with CUDA_VISIBLE_DEVICES")

    def _read(self) -> Reading:
        return Reading({rail: read() for rail, read in self._counters.items()})

    def _open(self, gpus: list[Gpu]) -> None:
        if not gpus:
            raise EdgeError("CUDA_VISIBLE_DEVICES leaves no NVIDIA GPU; unset it.")
        for number, gpu in enumerate(gpus):
            self._add(gpu, "gpu" if len(gpus) == 1 else f"gpu{number}")
        names = " + ".join(gpu.name for gpu in gpus)
        self.boundary = f"{names}: the whole board, without CPU and main memory"
        if len(self.pacing) < len(gpus):
            self.period_s = SAMPLING_PERIOD_S
            self.boundary += "; sampled power, as the board has no energy counter"

    def _add(self, gpu: Gpu, rail: str) -> None:
        nvml, handle = self._nvml, gpu.handle
        with suppress(nvml.NVMLError):  # a board without MIG
            if nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE:
                raise EdgeError(
                    f"{gpu.name} is sliced (MIG), but NVML counts whole boards; "
                    "measure on a whole GPU."
                )
        try:
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError:  # raised again where there is no power either
            self._counters[rail] = SampledPower(
                lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000, self.clock_ns
            )
            return
        self._counters[rail] = lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
        self.pacing = [*self.pacing, rail]

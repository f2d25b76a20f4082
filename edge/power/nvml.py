"""NVML: the energy counter of NVIDIA's boards, through nvidia-ml-py (the extra `nvidia`).

Since Volta the driver counts millijoules of the whole board, memory included, in steps of 20 to
100 ms. Older boards tell only their power, which is then sampled and integrated. Programs must
finish their work on the GPU before they stamp a window's edges.

Written against nvidia-ml-py 13.615's functions; never run on a real GPU by its author.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from edge.device.nvidia import Gpu, load_nvml, visible_gpus
from edge.errors import EdgeError
from edge.power.polling import NS_PER_S, Clock, PollingMeter, Reading, Wait

SAMPLING_PERIOD_S = 0.1


class SampledPower:
    """Joules of a board that tells only its watts: the trapezoids between readings."""

    def __init__(self, nvml: Any, gpu: Gpu, clock: Clock):
        self._nvml, self._gpu, self._clock = nvml, gpu, clock
        self._last: tuple[int, float] | None = None
        self._joules = 0.0

    def __call__(self) -> float:
        """Joules since the first call."""
        watts = self._nvml.nvmlDeviceGetPowerUsage(self._gpu.handle) / 1000
        now_ns = self._clock()
        if self._last is not None:
            then_ns, then_w = self._last
            self._joules += (watts + then_w) / 2 * (now_ns - then_ns) / NS_PER_S
        self._last = now_ns, watts
        return self._joules


class NvmlMeter(PollingMeter):
    """Joules of every board that CUDA_VISIBLE_DEVICES leaves, a rail for each.

    Args:
        load: gives the initialised module, or raises EdgeError with the reason.
        environment: where CUDA_VISIBLE_DEVICES is; the process's own by default.
        clock: nanoseconds.
        wait: waits for an event or so many seconds.
    """

    source = "nvml"
    boundary = "NVIDIA boards, memory included, without CPU and main memory"

    def __init__(
        self,
        load: Callable[[], Any] = load_nvml,
        environment: Mapping[str, str] | None = None,
        clock: Clock = time.monotonic_ns,
        wait: Wait = threading.Event.wait,
    ):
        super().__init__(clock, wait)
        self._counters: dict[str, Callable[[], float]] = {}
        try:
            self._nvml = load()
            self._open(visible_gpus(self._nvml, environment))
        except Exception as error:  # the module's own errors too: the constructor never raises
            reason = str(error) if isinstance(error, EdgeError) else f"NVML failed: {error}."
            self.unavailable = reason.rstrip(".")

    def start(self) -> None:
        """Begin sampling."""
        super().start()
        if len(self._counters) > 1:
            self._flags.append(
                f"nvml: {len(self._counters)} boards are added up; set CUDA_VISIBLE_DEVICES to "
                f"those that work"
            )

    def _read(self) -> Reading:
        return Reading({rail: read() for rail, read in self._counters.items()})

    def _open(self, gpus: list[Gpu]) -> None:
        if not gpus:
            raise EdgeError("CUDA_VISIBLE_DEVICES leaves no NVIDIA GPU; unset it.")
        for number, gpu in enumerate(gpus):
            self._refuse_slices(gpu)
            self._add(gpu, "gpu" if len(gpus) == 1 else f"gpu{number}")
        names = " + ".join(gpu.name for gpu in gpus)
        self.boundary = f"{names}: the whole board, without CPU and main memory"
        if len(self.pulse) < len(gpus):
            self.period_s = SAMPLING_PERIOD_S
            self.boundary += "; sampled power, as the board has no energy counter"

    def _refuse_slices(self, gpu: Gpu) -> None:
        try:
            current, _ = self._nvml.nvmlDeviceGetMigMode(gpu.handle)
        except self._nvml.NVMLError:
            return  # a board that cannot be sliced
        if current == self._nvml.NVML_DEVICE_MIG_ENABLE:
            raise EdgeError(
                f"{gpu.name} is sliced (MIG), and NVML tells the energy of the whole board only; "
                f"measure on a whole GPU."
            )

    def _add(self, gpu: Gpu, rail: str) -> None:
        nvml = self._nvml
        try:
            nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)
        except nvml.NVMLError:
            sampled = SampledPower(nvml, gpu, self._clock)
            sampled()  # raises where there is no power either
            self._counters[rail] = sampled
            return
        self._counters[rail] = lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle) / 1000
        self.pulse = [*self.pulse, rail]

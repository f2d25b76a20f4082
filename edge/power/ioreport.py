"""IOReport: the energy counters of Apple's chips, through zeus-apple-silicon (extra `ioreport`).

The model-based counters that powermetrics reads, without root, and DRAM. On macOS 27 those of CPU,
ANE and DRAM are published in batches about 2.2 s apart, the GPU's at once. GPU SRAM is not added:
it is not documented whether the GPU's counter contains it.

Written from the source of zeus-apple-silicon 1.1.0, never run on a Mac. 1.1.0 overwrites the
energy of one die of an Ultra with that of the other, and crashes in a virtual machine.
"""

import platform
import re
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Any

from edge.device.system import output_of
from edge.errors import EdgeError, install_command
from edge.power.meter import Sample
from edge.power.polling import PollingMeter, Reading, reason_of

# Rail -> attribute of AppleEnergyMetrics: millijoules, None where a chip has no such counter.
RAILS = {"CPU": "cpu_total_mj", "GPU": "gpu_mj", "ANE": "ane_mj", "DRAM": "dram_mj"}
BESIDE = {"GPU SRAM": "gpu_sram_mj"}
PACKAGE = "zeus-apple-silicon"
LAST_WITH_ONE_DIE = (1, 1, 0)
NO_COUNTERS = "a virtual machine has no energy counters; measure on the Mac itself"
NO_CPU = "it finds no energy counter of the CPU, as a new macOS may name it; use powermetrics"
# Four polls. A sample of this length means that the counters are published in batches.
BATCH_NS = 10**9


def load_monitor() -> Any:
    """An AppleEnergyMonitor; raises an EdgeError where it is missing or its values are wrong."""
    if (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        raise EdgeError("IOReport exists only on Macs with Apple silicon; choose another source.")
    if output_of(("sysctl", "-n", "kern.hv_vmm_present")) == "1":
        raise EdgeError(NO_COUNTERS)
    try:
        zeus = import_module("zeus_apple_silicon")
    except ImportError:
        raise EdgeError(f"{PACKAGE} is not installed: type {install_command(PACKAGE)}.") from None
    chip = output_of(("sysctl", "-n", "machdep.cpu.brand_string"))
    version = metadata.version(PACKAGE)
    if "Ultra" in chip and tuple(map(int, re.findall(r"\d+", version)[:3])) <= LAST_WITH_ONE_DIE:
        raise EdgeError(
            f"{PACKAGE} {version} counts only one of the two dies of {chip}; use powermetrics."
        )
    return zeus.AppleEnergyMonitor()


class IoReportMeter(PollingMeter):
    """Joules of CPU, GPU, Neural Engine and DRAM."""

    source = "ioreport"
    boundary = "CPU + GPU + ANE + DRAM of the SoC"
    pacing = ("CPU",)
    live = ("GPU",)

    def __init__(self) -> None:
        super().__init__()
        try:
            self._monitor = load_monitor()
            rails = self._read().joules
        except Exception as error:  # the package's own errors too
            self.unavailable = reason_of(error, "IOReport")
            return
        if "CPU" not in rails:
            self.unavailable = NO_CPU
        missing = "" if "DRAM" in rails else "DRAM, "
        self.boundary = f"{' + '.join(rails)} of the SoC, without {missing}display, SSD and fans"

    def stop(self) -> Sequence[Sample]:
        """End sampling; batches become a warning, because they blur the edges of a window."""
        samples = super().stop()
        longest_ns = max((sample.length_ns for sample in samples), default=0)
        if longest_ns >= BATCH_NS:
            self._warn(
                f"the counters came in batches up to {longest_ns / 1e9:.1f} s apart; "
                "measure for 30 s"
            )
        return samples

    def _read(self) -> Reading:
        metrics = self._monitor.get_cumulative_energy()
        return Reading(_joules(metrics, RAILS), _joules(metrics, BESIDE))


def _joules(metrics: Any, attributes: dict[str, str]) -> dict[str, float]:
    found = {rail: getattr(metrics, name, None) for rail, name in attributes.items()}
    return {rail: energy_mj / 1000 for rail, energy_mj in found.items() if energy_mj is not None}

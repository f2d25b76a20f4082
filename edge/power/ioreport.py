"""IOReport: the energy counters of Apple's chips, through zeus-apple-silicon (extra `ioreport`).

The same model-based counters as powermetrics shows, without root, and DRAM besides, which
powermetrics lost with macOS 13. On macOS 27 the counters of CPU, ANE and DRAM are published in
batches some 2.2 s apart, and there are reports of Macs where they stand still until powermetrics
runs. The GPU's stays live. A window's edges are therefore known to one batch.

Whether the GPU's counter contains its SRAM's is documented nowhere; SRAM is shown beside and not
added, as in powermetrics.

Written against zeus-apple-silicon 1.1.0, its source, its metadata and the names in its wheel for
macOS; never run on a Mac by its author. Two things of it are guarded against:

- On an Ultra, channels have `DIE_0_` or `DIE_1_` before their names. 1.1.0 overwrites the CPU's and
  the GPU's energy of one die with the other's; they are added only after that release.
- Its constructor does not check whether there is an energy model at all, and a virtual machine has
  none.
"""

from __future__ import annotations

import platform
import re
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from typing import Any

from edge.device.system import output_of
from edge.errors import EdgeError
from edge.install import install_command
from edge.power.meter import Sample
from edge.power.polling import NS_PER_S, Clock, PollingMeter, Reading, Wait

# Rail -> attribute of AppleEnergyMetrics: millijoules, None where a chip has no such counter.
RAILS = {"CPU": "cpu_total_mj", "GPU": "gpu_mj", "ANE": "ane_mj", "DRAM": "dram_mj"}
BESIDE = {"GPU SRAM": "gpu_sram_mj"}
PACKAGE = "zeus-apple-silicon"
ONE_DIE_UP_TO = (1, 1, 0)
# Four polls: a sample as long means that the counters come in batches.
BATCH_S = 1.0


def load_monitor() -> Any:
    """An AppleEnergyMonitor.

    Raises:
        EdgeError: another system, a virtual machine, or no package that can be trusted here.
    """
    if (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        raise EdgeError("IOReport is there on Macs with Apple silicon only; choose another source.")
    if output_of(("sysctl", "-n", "kern.hv_vmm_present")) == "1":
        raise EdgeError("a virtual machine has no energy counters; measure on the Mac itself.")
    try:
        zeus = import_module("zeus_apple_silicon")
    except ImportError:
        raise EdgeError(f"{PACKAGE} is not installed: type {install_command(PACKAGE)}.") from None
    _refuse_one_die()
    return zeus.AppleEnergyMonitor()


def _refuse_one_die() -> None:
    """An Ultra has two dies; see the module."""
    chip = output_of(("sysctl", "-n", "machdep.cpu.brand_string"))
    version = metadata.version(PACKAGE)
    if "Ultra" in chip and tuple(map(int, re.findall(r"\d+", version)[:3])) <= ONE_DIE_UP_TO:
        raise EdgeError(
            f"{PACKAGE} {version} counts only one of the two dies of {chip}; use powermetrics, or "
            f"a newer {PACKAGE}."
        )


class IoReportMeter(PollingMeter):
    """Joules of CPU, GPU, Neural Engine and DRAM.

    Args:
        load: gives the monitor, or raises EdgeError with the reason.
        clock: nanoseconds.
        wait: waits for an event or so many seconds.
    """

    source = "ioreport"
    boundary = "CPU + GPU + ANE + DRAM of the SoC"
    pulse = ("CPU",)
    live = ("GPU",)

    def __init__(
        self,
        load: Callable[[], Any] = load_monitor,
        clock: Clock = time.monotonic_ns,
        wait: Wait = threading.Event.wait,
    ):
        super().__init__(clock, wait)
        try:
            self._monitor = load()
            rails = tuple(self._read().joules)
        except Exception as error:  # the module's own errors too: the constructor never raises
            reason = str(error) if isinstance(error, EdgeError) else f"IOReport failed: {error}"
            self.unavailable = reason.rstrip(".")
            return
        if "CPU" not in rails:
            self.unavailable = (
                "IOReport has no energy counter of the CPU, as in a virtual machine; measure on "
                "the Mac itself"
            )
        missing = "" if "DRAM" in rails else "DRAM, "
        self.boundary = f"{' + '.join(rails)} of the SoC, without {missing}display, SSD and fans"

    def stop(self) -> Sequence[Sample]:
        """End sampling; flags say how closely the edges of a window are known."""
        samples = super().stop()
        longest_s = max(((s.end_ns - s.begin_ns) / NS_PER_S for s in samples), default=0.0)
        if longest_s >= BATCH_S:
            self._flags.append(
                f"ioreport: the counters came in batches up to {longest_s:.1f} s apart, and each "
                f"edge of a window is known no better; measure for 30 s or more"
            )
        return samples

    def _read(self) -> Reading:
        metrics = self._monitor.get_cumulative_energy()
        return Reading(_joules(metrics, RAILS), _joules(metrics, BESIDE))


def _joules(metrics: Any, attributes: dict[str, str]) -> dict[str, float]:
    """The rails that this chip has."""
    found = {rail: getattr(metrics, name, None) for rail, name in attributes.items()}
    return {rail: energy_mj / 1000 for rail, energy_mj in found.items() if energy_mj is not None}

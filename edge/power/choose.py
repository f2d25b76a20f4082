"""Choice of the power meter."""

import sys
from collections.abc import Callable, Collection

from edge.power.ioreport import IoReportMeter
from edge.power.meter import Meter
from edge.power.nvml import NvmlMeter
from edge.power.powermetrics import PowermetricsMeter
from edge.power.rapl import RaplMeter

METERS: dict[str, Callable[[], Meter]] = {
    "powermetrics": PowermetricsMeter,
    "ioreport": IoReportMeter,
    "nvml": NvmlMeter,
    "rapl": RaplMeter,
}
# Source -> processors that it covers; best first: Apple's own tool, the GPU before the CPU.
BEST_FIRST: dict[str, dict[str, set[str]]] = {
    "darwin": {"powermetrics": {"CPU", "GPU"}, "ioreport": {"CPU", "GPU"}},
    "linux": {"nvml": {"GPU"}, "rapl": {"CPU"}},
}


class NoMeter(Meter):
    """No samples: energy is null, not 0."""

    def __init__(self, reason: str):
        self.unavailable = reason


def why_not(meter: Meter, source: str) -> str | None:
    """A sentence on why a meter cannot measure and what to do; None if it can."""
    if isinstance(meter, NoMeter) and source == "auto":
        return "no power meter works here; `edge doctor` lists what each of them needs"
    return meter.unavailable


def choose_meter(source: str, processors: Collection[str] = ()) -> Meter:
    """The meter of a source; `unavailable` has the reason where it does not work here.

    `auto` is the best that works here and covers all of `processors`, "CPU" and "GPU", which
    compute: the power of an idle GPU says nothing about work on the CPU.
    """
    if source == "none":
        return NoMeter("power was not measured: the source is none")
    if source != "auto":
        return METERS[source]()
    reasons = []
    for name, covered in BEST_FIRST.get(sys.platform, {}).items():
        if left_out := sorted(set(processors) - covered):
            reasons.append(f"{name}: it does not cover the {left_out[0]}, which computes here")
            continue
        meter = METERS[name]()
        if meter.unavailable is None:
            return meter
        reasons.append(f"{name}: {meter.unavailable}")
    why = "; ".join(reasons) or f"edge has no meter for {sys.platform}"
    return NoMeter(f"power was not measured: {why}")

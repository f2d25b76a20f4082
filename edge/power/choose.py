"""Pick the power meter."""

import sys
from collections.abc import Callable, Collection, Sequence

from edge.power.ioreport import IoReportMeter
from edge.power.meter import Meter, Sample
from edge.power.nvml import NvmlMeter
from edge.power.powermetrics import PowermetricsMeter
from edge.power.rapl import RaplMeter

METERS: dict[str, Callable[[], Meter]] = {
    "powermetrics": PowermetricsMeter,
    "ioreport": IoReportMeter,
    "nvml": NvmlMeter,
    "rapl": RaplMeter,
}
COVERS = {
    "powermetrics": ("CPU", "GPU"),
    "ioreport": ("CPU", "GPU"),
    "nvml": ("GPU",),
    "rapl": ("CPU",),
}
# Best first: the maker's own tool, then what needs no root; the device before its host.
BEST_FIRST = {"darwin": ("powermetrics", "ioreport"), "linux": ("nvml", "rapl")}


class NoMeter:
    """No samples, so that energy is null and never 0."""

    source = "none"
    boundary = "nothing"
    flags: Sequence[str] = ()

    def __init__(self, reason: str):
        self.unavailable: str | None = reason

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> Sequence[Sample]:
        """Nothing was measured."""
        return ()


def choose_meter(source: str, processors: Collection[str] = ()) -> Meter:
    """The meter of this source; one that does not work here says so in `unavailable`.

    `auto` is the best that works here and leaves out none of the processors, "CPU" and "GPU",
    that do the work: an idle board's watts are not the work's.
    """
    if source == "none":
        return NoMeter("power was not measured: no source was wanted (none)")
    if source != "auto":
        return _build(source)
    reasons = []
    for name in BEST_FIRST.get(sys.platform, ()):
        left_out = sorted(set(processors).difference(COVERS[name]))
        if left_out:
            reasons.append(f"{name}: it leaves out the {left_out[0]}, which computes here")
            continue
        meter = _build(name)
        if meter.unavailable is None:
            return meter
        reasons.append(f"{name}: {meter.unavailable}")
    why = "; ".join(reasons) or f"edge has no meter for {sys.platform}"
    return NoMeter(f"power was not measured: {why}")


def _build(name: str) -> Meter:
    return METERS[name]()

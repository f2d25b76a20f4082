"""Pick the power meter."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Sequence

from edge.power.meter import Meter, Sample

# Each with its class, which is imported only when asked for and built without arguments.
METERS = {
    "powermetrics": ("edge.power.powermetrics", "PowermetricsMeter"),
    "ioreport": ("edge.power.ioreport", "IoReportMeter"),
    "nvml": ("edge.power.nvml", "NvmlMeter"),
    "rapl": ("edge.power.rapl", "RaplMeter"),
}
SOURCES = ("auto", *METERS, "none")
# Best first: what the maker's own tool says, then what needs no root; the device before its host.
BEST_FIRST = {"darwin": ("powermetrics", "ioreport"), "linux": ("nvml", "rapl")}
COVERS = {
    "powermetrics": ("CPU", "GPU"),
    "ioreport": ("CPU", "GPU"),
    "nvml": ("GPU",),
    "rapl": ("CPU",),
}


class NoMeter:
    """The meter of a machine without one: no samples, so that energy is null and never 0."""

    source = "none"
    boundary = "nothing"
    flags: Sequence[str] = ()

    def __init__(self, reason: str):
        self.unavailable: str | None = reason

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> Sequence[Sample]:
        """No samples."""
        return ()


def choose_meter(source: str, processors: Collection[str] = ()) -> Meter:
    """The meter to use; one that does not work here says so in `unavailable`.

    Args:
        source: one of SOURCES; `auto` is the best that works here.
        processors: those that do the work, "CPU" and "GPU", as far as known: `auto` takes no
            meter that leaves one of them out, because an idle board's watts are not the work's.
    """
    if source == "none":
        return NoMeter("power was not measured: no source was wanted (none)")
    if source == "auto":
        return _best(BEST_FIRST.get(sys.platform, ()), processors)
    return _build(source)


def _best(names: Sequence[str], processors: Collection[str]) -> Meter:
    """The first that works and covers the processors."""
    reasons = []
    for name in names:
        left_out = sorted(set(processors).difference(COVERS[name]))
        if left_out:
            reasons.append(f"{name}: it leaves out the {left_out[0]}, which computes here")
            continue
        meter = _build(name)
        if meter.unavailable is None:
            return meter
        reasons.append(f"{name}: {meter.unavailable}")
    why = "; ".join(reasons) or f"edge knows no meter for {sys.platform}"
    return NoMeter(f"power was not measured: {why}")


def _build(name: str) -> Meter:
    module, class_name = METERS[name]
    meter: Meter = getattr(importlib.import_module(module), class_name)()
    return meter

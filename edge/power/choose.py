"""Pick the power meter."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from edge.errors import EdgeError
from edge.power.combined import CombinedMeter
from edge.power.meter import Meter
from edge.power.none import NoMeter

# Each with its class, which is imported only when asked for and built without arguments.
METERS = {
    "powermetrics": ("edge.power.powermetrics", "PowermetricsMeter"),
    "ioreport": ("edge.power.ioreport", "IoReportMeter"),
    "nvml": ("edge.power.nvml", "NvmlMeter"),
    "rapl": ("edge.power.rapl", "RaplMeter"),
}
SOURCES = ("auto", *METERS, "replay:FILE", "none")
REPLAY = "replay:"
# Best first: what the maker's own tool says, then what needs no root; the device before its host.
BEST_FIRST = {"darwin": ("powermetrics", "ioreport"), "linux": ("nvml", "rapl")}


def check_source(source: str) -> str:
    """The source, if there is such a one.

    Raises:
        EdgeError: there is none.
    """
    if source in SOURCES and source != "replay:FILE":
        return source
    if source.startswith(REPLAY) and len(source) > len(REPLAY):
        return source
    raise EdgeError(f"There is no power source {source!r}: choose from {', '.join(SOURCES)}.")


def choose_meter(source: str) -> Meter:
    """The meter to use; one that does not work here says so in `unavailable`.

    Args:
        source: `none`, a source by name, `replay:FILE` for a log of powermetrics, or `auto` for
            the best that works here.

    Raises:
        EdgeError: there is no such source.
    """
    check_source(source)
    if source == "none":
        return NoMeter("power was not measured: no source was wanted (none)")
    if source == "auto":
        return _best(BEST_FIRST.get(sys.platform, ()))
    if source.startswith(REPLAY):
        from edge.power.replay import ReplayMeter

        return ReplayMeter(Path(source.removeprefix(REPLAY)).expanduser())
    return _build(source)


def _best(names: tuple[str, ...]) -> Meter:
    """The first that works; powermetrics with ioreport beside it, where both do."""
    reasons = []
    for place, name in enumerate(names):
        meter = _build(name)
        if meter.unavailable is None:
            return _with_second(meter, names[place + 1 :])
        reasons.append(f"{name}: {meter.unavailable}")
    why = "; ".join(reasons) or f"edge knows no meter for {sys.platform}"
    return NoMeter(f"power was not measured: {why}")


def _with_second(meter: Meter, others: tuple[str, ...]) -> Meter:
    if meter.source != "powermetrics" or "ioreport" not in others:
        return meter  # a GPU and its host's CPU are different watts, not two views of the same
    second = _build("ioreport")
    return meter if second.unavailable is not None else CombinedMeter(meter, second)


def _build(name: str) -> Meter:
    module, class_name = METERS[name]
    meter: Meter = getattr(importlib.import_module(module), class_name)()
    return meter

"""The plots of a profile, one file each; every one is `draw(profile)` and `missing(profile)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.report.figure import NamedFigure
from edge.report.plots import depth, drift, energy, latency, power, roofline, throughput

PLOTS = (throughput, energy, depth, power, latency, roofline, drift)


def figures(profile: Mapping[str, Any]) -> list[NamedFigure]:
    """Every plot that the profile has data for.

    Args:
        profile: plain data, as `edge.profile_file.read_profile` gives it.
    """
    drawn = (plot.draw(profile) for plot in PLOTS)
    return [figure for figure in drawn if figure is not None]


def missing(profile: Mapping[str, Any]) -> list[str]:
    """A sentence for every plot that the profile has no data for."""
    said = (plot.missing(profile) for plot in PLOTS)
    return [sentence for sentence in said if sentence is not None]

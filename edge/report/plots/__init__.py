"""The plots of a profile, one file each; every one is `draw(profile)` and `missing(profile)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.report.frame import NamedFigure
from edge.report.plots import depth, energy, latency, power, precision, roofline, throughput

PLOTS = (throughput, energy, precision, depth, power, latency, roofline)


def figures(profile: Mapping[str, Any]) -> list[NamedFigure]:
    """Every plot that the profile has data for.

    Args:
        profile: plain data, as `edge.profile.reading.read_profile` gives it.
    """
    drawn = (plot.draw(profile) for plot in PLOTS)
    return [figure for figure in drawn if figure is not None]


def missing(profile: Mapping[str, Any]) -> list[str]:
    """Sentences about the plots that the profile has no data for, one for each reason."""
    titles: dict[str, list[str]] = {}
    for plot in PLOTS:
        if (sentence := plot.missing(profile)) is not None:
            title, _, why = sentence.partition(": ")
            titles.setdefault(why, []).append(title)
    return [f"{', '.join(found)}: {why}" for why, found in titles.items()]

"""The plots of a profile: functions that return a figure, or the reason why there is none."""

from dataclasses import dataclass

from edge.profile.profile import Profile
from edge.report.figure import NamedFigure
from edge.report.plots.against import batch, depth
from edge.report.plots.bars import roofline, throughput
from edge.report.plots.latency import latency
from edge.report.plots.points import energy, precision
from edge.report.plots.power import power
from edge.report.plots.ratios import ratios
from edge.report.table import has_batches
from edge.text import plain

PLOTS = {
    "Decode throughput": throughput,
    "Energy against speed": energy,
    "What a precision costs": precision,
    "Against depth": depth,
    "Power over time": power,
    "Time per token": latency,
    "Roofline": roofline,
}


@dataclass(frozen=True)
class Drawn:
    """A profile's figures, and a sentence for each reason why plots are missing."""

    figures: list[NamedFigure]
    missing: list[str]


def draw(profile: Profile) -> Drawn:
    plots = dict(PLOTS)
    if has_batches(profile.rows):
        plots["Against batch"] = batch
    if any(row.ratios for row in profile.rows):
        plots["Ratios"] = ratios
    drawn = {title: plot(profile) for title, plot in plots.items()}
    titles: dict[str, list[str]] = {}
    for title, found in drawn.items():
        if isinstance(found, str):
            titles.setdefault(plain(found, 400), []).append(title)
    missing = [f"{', '.join(names)}: {why}." for why, names in titles.items()]
    return Drawn([f for f in drawn.values() if isinstance(f, NamedFigure)], missing)

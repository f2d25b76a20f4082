"""Every trial in the order of time, one panel per row: does the device tire?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from edge.report.figure import DARK_GREY, GREY, INK, colour_of, engine_handles, style
from edge.report.frame import NamedFigure, finish
from edge.report.plots.grid import panels
from edge.report.plots.view import RowView, absences, side_by_side, view
from edge.report.values import number

TITLE = "Drift over trials"
# Less than this and a panel would show noise as mountains.
LEAST_RANGE = 0.10


def missing(profile: Mapping[str, Any]) -> str | None:
    """Why there is no such plot: it takes two trials of a row."""
    if any(len(_rates(row)) > 1 for row in view(profile)):
        return None
    return f"{TITLE}: no row has two trials or more that decode."


def draw(profile: Mapping[str, Any]) -> NamedFigure | None:
    """Rates against each row's own median; rounds, which are processes, kept apart by lines."""
    if missing(profile):
        return None
    every = side_by_side(view(profile))
    rows = [row for row in every if _rates(row)]
    with style():
        figure, axes = panels("drift", rows, "trial, in order of time", "rate against median")
        reach = _reach(rows)
        for panel, row in zip(axes, rows, strict=True):
            _draw_row(panel, row, 0.95 * reach)
        _scale(axes[0], rows)
        hollow = Line2D([], [], marker="o", ls="", mfc="white", color=DARK_GREY, markersize=4)
        hollow.set_label("warm-up, not counted")
        handles = engine_handles([row.engine for row in rows], hollow)
        counts = sorted({len(_rates(row)) for row in rows})
        caption = (
            f"Decode rate of each trial against its row's median; n = "
            f"{' or '.join(map(str, counts))} trials that count. A dotted line: a new process. "
            f"A warm-up at the frame's edge lies beyond it."
        )
        absent = absences([row for row in every if row not in rows], "decode_tok_s")
        return finish(figure, TITLE, caption, profile, handles, *absent)


def _rates(row: RowView) -> list[float]:
    found = (number(trial.get("decode_tok_s")) for trial in row.counted_trials())
    return [rate for rate in found if rate]


def _deviations(row: RowView) -> list[tuple[int, float, bool, Any]]:
    """Number, rate against the median, whether a warm-up, and the round of every trial."""
    rates = sorted(_rates(row))
    middle = rates[len(rates) // 2] if len(rates) % 2 else sum(_two_middle(rates)) / 2
    found = []
    for place, trial in enumerate(row.trials(), 1):
        rate = number(trial.get("decode_tok_s"))
        if rate:
            found.append((place, rate / middle - 1, bool(trial.get("warmup")), trial.get("round")))
    return found


def _two_middle(values: list[float]) -> list[float]:
    return values[len(values) // 2 - 1 : len(values) // 2 + 1]


def _draw_row(panel: Axes, row: RowView, edge: float) -> None:
    points, colour = _deviations(row), colour_of(row.engine)
    panel.axhline(0, color=DARK_GREY, linewidth=0.8)
    counted = [(x, y) for x, y, warmup, _ in points if not warmup]
    x, y = zip(*counted, strict=True)
    panel.plot(x, y, color=colour, linewidth=1, alpha=0.6)
    panel.scatter(x, y, s=16, color=colour, edgecolor=INK, linewidth=0.4)
    hollow = [(x, max(-edge, min(edge, y))) for x, y, warmup, _ in points if warmup]
    if hollow:
        x, y = zip(*hollow, strict=True)
        panel.scatter(x, y, s=16, facecolor="white", edgecolor=colour, zorder=3, clip_on=True)
    for before, after in pairwise(points):
        if before[3] != after[3]:
            panel.axvline((before[0] + after[0]) / 2, color=GREY, linewidth=0.7, linestyle=":")


def _reach(rows: list[RowView]) -> float:
    """Of the trials that count: a wild warm-up must not press them flat."""
    counted = (abs(y) for row in rows for _, y, warmup, _ in _deviations(row) if not warmup)
    return max(LEAST_RANGE, 1.6 * max(counted))


def _scale(panel: Axes, rows: list[RowView]) -> None:
    """Shared by all panels, symmetric, never finer than LEAST_RANGE."""
    points = [point for row in rows for point in _deviations(row)]
    reach = _reach(rows)
    panel.set_ylim(-reach, reach)
    panel.set_xlim(0.5, max(x for x, _, _, _ in points) + 0.5)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    panel.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:+.0%}" if abs(value) > 1e-9 else "0%")
    )

"""Ratios to the baseline, with their intervals."""

from typing import Any

from matplotlib.lines import Line2D

from edge.profile.profile import Profile, Row
from edge.report import figure as fig
from edge.report.plots.rows import NO_ROWS, first, label_log
from edge.report.table import RATIO_HEADS, has_tests, ratio_notes, row_label, side_by_side

MOST_ROWS = 30
# Marker and fill of each quantity, in the order of RATIO_HEADS.
MARKERS = (("o", fig.INK), ("D", "white"), ("s", fig.GREY))


def ratios(profile: Profile) -> fig.NamedFigure | str:
    """A line per row: ratios as marks, their intervals as bars, no difference as a line at 1."""
    rows, others = first([row for row in side_by_side(profile.rows) if row.ratios], MOST_ROWS)
    if not rows:
        return NO_ROWS
    ends = [end for row in rows for ratio in row.ratios.values() for end in ratio.interval or ()]
    ends += [ratio.ratio for row in rows for ratio in row.ratios.values()] + [1.0]
    low, high = min(ends) / 1.05, max(ends) * 1.05
    shown = [key for key in RATIO_HEADS if any(key in row.ratios for row in rows)]
    with fig.style():
        figure = fig.new_figure(0.8 + 0.5 * len(rows))
        axes = figure.add_subplot()
        axes.axvline(1.0, color=fig.DARK_GREY, linewidth=1)
        for y, row in enumerate(rows):
            _draw_row(axes, y, row)
        axes.set_yticks(range(len(rows)), [_label(row, rows) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        label_log(axes.xaxis, low, high)
        axes.set_xlabel("ratio to the baseline")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        looks = dict(zip(RATIO_HEADS, MARKERS, strict=True))
        handles = [_handle(RATIO_HEADS[key], *looks[key]) for key in shown]
        caption = [f"{note[0].upper()}{note[1:]}." for note in ratio_notes(profile)]
        return fig.finish(
            figure, "ratios", "Relative to the baseline", profile, handles, *caption, *others
        )


def _draw_row(axes: Any, y: int, row: Row) -> None:
    for place, (key, (marker, fill)) in enumerate(zip(RATIO_HEADS, MARKERS, strict=True)):
        found = row.ratios.get(key)
        if found is None:
            continue
        at, colour = y + 0.2 * (place - 1), fig.colour_of(row.engine)
        if found.interval is not None:
            axes.plot(found.interval, [at, at], color=colour, linewidth=2.5, zorder=3)
        axes.plot(found.ratio, at, marker, color=fig.INK, markerfacecolor=fill, zorder=4)


def _label(row: Row, rows: Any) -> str:
    return row_label(row, has_tests(rows))


def _handle(name: str, marker: str, fill: str) -> Line2D:
    look: dict[str, Any] = {"marker": marker, "color": fig.INK, "markerfacecolor": fill}
    return Line2D([], [], ls="", label=name, **look)

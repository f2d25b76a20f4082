"""How long single tokens took: the share of tokens that took no longer than a time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes

from edge.report.figure import DARK_GREY, INK, colour_of, engine_handles, style
from edge.report.frame import NamedFigure, finish
from edge.report.plots.grid import panels
from edge.report.plots.ticks import label_log
from edge.report.plots.view import RowView, absences, side_by_side, view
from edge.report.values import numbers
from edge.stats import SHARES, percentiles

TITLE = "Time per token"
# A curve needs no more corners than this to look the same.
MOST_POINTS = 300


def missing(profile: Mapping[str, Any]) -> str | None:
    """Why there is no such plot."""
    if any(token_times_ms(row) for row in view(profile)):
        return None
    return f"{TITLE}: no row has kept the times of its tokens."


def draw(profile: Mapping[str, Any]) -> NamedFigure | None:
    """A panel for every row that has token times."""
    if missing(profile):
        return None
    every = side_by_side(view(profile))
    rows = [row for row in every if token_times_ms(row)]
    times = [token_times_ms(row) for row in rows]
    with style():
        label = "time per token (ms, log)"
        figure, axes = panels("latency", rows, label, "share of tokens")
        for panel, row, found in zip(axes, rows, times, strict=True):
            _draw_row(panel, row, found)
        _scale(axes[0], min(map(min, times)), max(map(max, times)))
        handles = engine_handles([row.engine for row in rows])
        least, most = min(map(len, times)), max(map(len, times))
        counts = f"{least}" if least == most else f"{least} to {most}"
        caption = (
            f"Share of tokens that took no longer than a time; n = {counts} tokens a row, of all "
            f"trials that count, without the first of each pass. Dots: p50, p90 and p99."
        )
        absent = absences([row for row in every if row not in rows], "decode_tok_s")
        return finish(figure, TITLE, caption, profile, handles, *absent)


def token_times_ms(row: RowView) -> list[float]:
    """Of every kept token of the trials that count, shortest first."""
    times = [ms for trial in row.counted_trials() for ms in _times_ms(trial)]
    return sorted(ms for ms in times if ms > 0)


def _times_ms(trial: Mapping[str, Any]) -> list[float]:
    passes = trial.get("token_us")
    if isinstance(passes, list):
        return [us / 1e3 for times in passes for us in numbers(times)]
    # Profiles of before the passes have stamps.
    return [(b - a) / 1e6 for a, b in pairwise(numbers(trial.get("token_ns")))]


def _draw_row(panel: Axes, row: RowView, times: list[float]) -> None:
    step = max(1, len(times) // MOST_POINTS)
    places = [*range(0, len(times), step), len(times) - 1]
    x = [times[place] for place in places]
    y = [(place + 1) / len(times) for place in places]
    panel.plot(x, y, drawstyle="steps-post", color=colour_of(row.engine), linewidth=1.6)
    marks = percentiles(times)
    panel.scatter(list(marks.values()), list(SHARES.values()), s=13, color=INK, zorder=3)
    text = "\n".join(f"{name} {_three(ms)} ms" for name, ms in marks.items())
    panel.annotate(
        text,
        (0.97, 0.06),
        xycoords="axes fraction",
        ha="right",
        va="bottom",
        fontsize=7,
        color=DARK_GREY,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )


def _scale(panel: Axes, least_ms: float, most_ms: float) -> None:
    """Logarithmic, with round numbers in plain writing."""
    panel.set_xscale("log")
    panel.set_xlim(least_ms / 1.15, most_ms * 1.6)
    panel.set_ylim(0, 1.04)
    panel.set_yticks([0, 0.25, 0.5, 0.75, 1])
    label_log(panel.xaxis, least_ms / 1.15, most_ms * 1.6)


def _three(value: float) -> str:
    """Three significant figures, zeros included."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"

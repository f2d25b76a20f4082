"""How long single tokens took: the share of tokens that took no longer than a time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from edge.report.figure import (
    DARK_GREY,
    INK,
    NamedFigure,
    colour_of,
    engine_handles,
    finish,
    style,
)
from edge.report.plots.grid import panels
from edge.report.plots.view import RowView, numbers, side_by_side, view

TITLE = "Time per token"
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
# A curve needs no more corners than this to look the same.
MOST_POINTS = 300
ROUND_STEPS = (1, 2, 5)


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
        absent = [
            f"{r.label} not measured: {r.why_not('decode_tok_s')}." for r in every if r not in rows
        ]
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


def share(times: list[float], part: float) -> float:
    """The time that a part of the tokens does not exceed; `times` are sorted."""
    return times[min(int(part * len(times)), len(times) - 1)]


def _draw_row(panel: Axes, row: RowView, times: list[float]) -> None:
    step = max(1, len(times) // MOST_POINTS)
    places = [*range(0, len(times), step), len(times) - 1]
    x = [times[place] for place in places]
    y = [(place + 1) / len(times) for place in places]
    panel.plot(x, y, drawstyle="steps-post", color=colour_of(row.engine), linewidth=1.6)
    marks = {name: share(times, part) for name, part in SHARES.items()}
    panel.scatter(list(marks.values()), list(SHARES.values()), s=13, color=INK, zorder=3)
    text = "\n".join(f"{name} {ms:.3g} ms" for name, ms in marks.items())
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
    ticks = [s * 10.0**e for e in range(-6, 13) for s in ROUND_STEPS]
    inside = [t for t in ticks if least_ms / 1.15 <= t <= most_ms * 1.6]
    panel.xaxis.set_major_locator(FixedLocator(inside[:: max(1, len(inside) // 5)]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

"""Time per token: the share of tokens that took no longer than a time."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from statistics import quantiles

from matplotlib.axes import Axes

from edge.profile.profile import Profile, Row
from edge.report.figure import (
    DARK_GREY,
    INK,
    NamedFigure,
    colour_of,
    engine_handles,
    finish,
    new_figure,
    style,
)
from edge.report.plots.rows import absences, heading, label_log, side_by_side
from edge.text import figure as number

COLUMNS, PANEL_IN = 3, 1.7
TITLE_CHARACTERS = 34
# A curve needs no more corners than this to look the same.
MOST_POINTS = 300
SHARES = {"p50": 50, "p90": 90, "p99": 99}


def latency(profile: Profile) -> NamedFigure | str:
    """A panel for every row that has kept the times of its tokens, scales shared by all."""
    every = side_by_side(profile.rows)
    known = [(row, times) for row in every if len(times := token_times_ms(row)) > 1]
    if not known:
        return "no row has kept the times of its tokens"
    with style():
        columns = min(COLUMNS, len(known))
        lines = math.ceil(len(known) / columns)
        figure = new_figure(0.5 + PANEL_IN * lines)
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        panels = [panel for line in grid for panel in line]
        for place, (panel, (row, times)) in enumerate(zip(panels, known, strict=False)):
            _draw_panel(panel, row, times, heading(row, profile.rows))
            if place % columns == 0:
                panel.set_ylabel("share of tokens", fontsize=8)
            if place + columns >= len(known):
                panel.xaxis.set_tick_params(labelbottom=True)
                panel.set_xlabel("time per token (ms, log)", fontsize=8)
        for unused in panels[len(known) :]:
            unused.set_visible(False)
        _scale(panels[0], [times for _, times in known])
        handles = engine_handles([row.engine for row, _ in known])
        least, *_, most = sorted(len(times) for _, times in [*known, *known])
        hidden = [row for row in every if all(row is not shown for shown, _ in known)]
        caption = (
            f"n = {least if least == most else f'{least} to {most}'} tokens a row, of all trials "
            "that count, without the first of each pass. Dots: p50, p90 and p99.",
            *absences(hidden, profile.rows, "decode_tok_s"),
        )
        return finish(figure, "latency", "Time per token", profile, handles, *caption)


def token_times_ms(row: Row) -> list[float]:
    """Of every kept token of the trials that count, shortest first."""
    times = [us / 1e3 for trial in row.counted for one in trial.token_us for us in one]
    for trial in row.counted:
        if isinstance(trial.token_ns, list):
            times += [(b - a) / 1e6 for a, b in pairwise(trial.token_ns)]
    return sorted(ms for ms in times if ms > 0)


def _draw_panel(panel: Axes, row: Row, times: Sequence[float], title: str) -> None:
    places = [*range(0, len(times), max(1, len(times) // MOST_POINTS)), len(times) - 1]
    x = [times[place] for place in places]
    y = [(place + 1) / len(times) for place in places]
    panel.plot(x, y, drawstyle="steps-post", color=colour_of(row.engine), linewidth=1.6)
    cuts = quantiles(times, n=100, method="inclusive")
    marks = {name: cuts[cut - 1] for name, cut in SHARES.items()}
    panel.scatter(
        [*marks.values()], [cut / 100 for cut in SHARES.values()], s=13, color=INK, zorder=3
    )
    panel.annotate(
        "\n".join(f"{name} {number(ms)} ms" for name, ms in marks.items()),
        (0.97, 0.06),
        xycoords="axes fraction",
        ha="right",
        va="bottom",
        fontsize=7,
        color=DARK_GREY,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
    panel.set_title(textwrap.fill(title, TITLE_CHARACTERS), fontsize=8)
    panel.grid()


def _scale(panel: Axes, times: Sequence[Sequence[float]]) -> None:
    low, high = min(map(min, times)) / 1.15, max(map(max, times)) * 1.6
    panel.set_xscale("log")
    panel.set_xlim(low, high)
    panel.set_ylim(0, 1.04)
    panel.set_yticks([0, 0.25, 0.5, 0.75, 1])
    label_log(panel.xaxis, low, high)

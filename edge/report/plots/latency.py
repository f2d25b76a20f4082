"""The distribution of token times."""

import math
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from statistics import quantiles

from matplotlib.axes import Axes

from edge.profile.profile import Profile, Row
from edge.report import figure as fig
from edge.report.plots.rows import absences, first, heading, label_log
from edge.report.table import side_by_side
from edge.text import figure as number

COLUMNS, PANEL_IN = 3, 1.7
TITLE_CHARACTERS = 34
MOST_PANELS = 12
# Points drawn per curve.
MOST_POINTS = 300
SHARES = {"p50": 50, "p90": 90, "p99": 99}


def latency(profile: Profile) -> fig.NamedFigure | str:
    """Distribution of token times, a panel per row that has them, with common scales."""
    every = side_by_side(profile.rows)
    timed = [(row, times) for row in every if len(times := token_times_ms(row)) > 1]
    if not timed:
        return "no row has the times of its tokens"
    absent = absences(every, [row for row, _ in timed], profile.rows, "decode_tok_s")
    known, others = first(timed, MOST_PANELS)
    with fig.style():
        columns = min(COLUMNS, len(known))
        lines = math.ceil(len(known) / columns)
        figure = fig.new_figure(0.5 + PANEL_IN * lines)
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        panels = [panel for line in grid for panel in line]
        middle_ms = math.sqrt(min(t[0] for _, t in known) * max(t[-1] for _, t in known))
        for place, (panel, (row, times)) in enumerate(zip(panels, known, strict=False)):
            _draw_times(panel, row, times, heading(row, profile.rows), middle_ms)
            if place % columns == 0:
                panel.set_ylabel("share of tokens", fontsize=8)
            if place + columns >= len(known):
                panel.xaxis.set_tick_params(labelbottom=True)
                panel.set_xlabel("time per token (ms, log)", fontsize=8)
        for unused in panels[len(known) :]:
            unused.set_visible(False)
        _scale(panels[0], [times for _, times in known])
        handles = fig.engine_handles([row.engine for row, _ in known])
        least, *_, most = sorted(len(times) for _, times in [*known, *known])
        caption = (
            f"n = {least if least == most else f'{least} to {most}'} tokens a row, of all trials "
            "that count, without the first of each pass. Dots: p50, p90 and p99.",
            *others,
            *absent,
        )
        return fig.finish(figure, "latency", "Time per token", profile, handles, *caption)


def token_times_ms(row: Row) -> list[float]:
    """Times of all tokens of the trials that are not warm-ups, sorted."""
    times = [us / 1e3 for trial in row.counted for one in trial.token_us for us in one]
    for trial in row.counted:
        if isinstance(trial.token_ns, list):
            times += [(b - a) / 1e6 for a, b in pairwise(trial.token_ns)]
    return sorted(ms for ms in times if ms > 0)


def _draw_times(
    panel: Axes, row: Row, times: Sequence[float], title: str, middle_ms: float
) -> None:
    places = [*range(0, len(times), max(1, len(times) // MOST_POINTS)), len(times) - 1]
    x = [times[place] for place in places]
    y = [(place + 1) / len(times) for place in places]
    panel.plot(x, y, drawstyle="steps-post", color=fig.colour_of(row.engine), linewidth=1.6)
    cuts = quantiles(times, n=100, method="inclusive")
    marks = {name: cuts[cut - 1] for name, cut in SHARES.items()}
    panel.scatter(
        [*marks.values()], [cut / 100 for cut in SHARES.values()], s=13, color=fig.INK, zorder=3
    )
    # Right of the curve and below it, or left of it and above.
    is_left = marks["p50"] > middle_ms
    panel.annotate(
        "\n".join(f"{name} {number(ms)} ms" for name, ms in marks.items()),
        (0.03, 0.94) if is_left else (0.97, 0.06),
        xycoords="axes fraction",
        ha="left" if is_left else "right",
        va="top" if is_left else "bottom",
        fontsize=7,
        color=fig.DARK_GREY,
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

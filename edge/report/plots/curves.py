"""Curves: speed, memory and energy against depth, and the distribution of token times."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import quantiles
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from edge.profile.profile import Profile, Quantity, Row
from edge.report import figure as fig
from edge.report.plots.rows import (
    Spread,
    absences,
    counts,
    first,
    heading,
    label_log,
    spread,
    spread_meaning,
)
from edge.report.table import side_by_side
from edge.text import figure as number
from edge.text import plain

# Artefacts of one engine have the same colour and different lines and markers.
LOOKS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ("-", "v"), ("--", "X"))
Key = tuple[str, str, str]
PANELS = {
    "decode_tok_s": "decode throughput (tok/s)",
    "peak_memory_bytes": "peak memory (GB)",
    "joules_per_token": "energy (J/token)",
}
COLUMNS, PANEL_IN = 3, 1.7
TITLE_CHARACTERS = 34
MOST_CURVES, MOST_PANELS = 12, 12
# Points drawn per curve.
MOST_POINTS = 300
SHARES = {"p50": 50, "p90": 90, "p99": 99}


def depth(profile: Profile) -> fig.NamedFigure | str:
    """Speed, memory and energy against depth, a line per artefact and engine."""
    every_series = _series(profile.rows)
    if not every_series:
        return "nothing was measured at more than one depth (-d 0,4096, or --suite depth)"
    kept, others = first([*every_series.items()], MOST_CURVES)
    series = dict(kept)
    looks = _looks(series)
    with fig.style():
        figure = fig.new_figure(3.2)
        panels = figure.subplots(1, len(PANELS))
        for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
            axes.set_title(label)
            values = {key: _values(rows, name) for key, rows in series.items()}
            if any(values.values()):
                _draw_depths(axes, series, values, looks)
            else:
                _draw_missing(axes, next(iter(series.values()))[0].why_not(name))
        handles = [
            Line2D([], [], label=plain(f"{key[0]} on {key[1]}", 44), **look)
            for key, look in looks.items()
        ]
        every = [row for rows in series.values() for row in rows]
        shown = [row for row in every if row.counts and row.decode_tok_s is not None]
        caption = _depth_caption(series) + absences(every, shown, profile.rows, "decode_tok_s")
        caption += others
        return fig.finish(figure, "depth", "Against depth", profile, handles, *caption)


def _series(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """Rows of the same artefact, engine and test at two or more depths, by depth."""
    found: dict[Key, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.workload.depth):
        found.setdefault((row.artefact, row.engine, row.workload.test), []).append(row)
    order = dict.fromkeys((row.artefact, row.engine, row.workload.test) for row in rows)
    return {key: found[key] for key in order if len({r.workload.depth for r in found[key]}) > 1}


def _values(rows: Sequence[Row], name: str) -> list[tuple[int, Spread]]:
    """A figure of every row that has it, by depth; bytes as GB."""
    found = []
    for row in rows:
        value = getattr(row, name)
        if isinstance(value, int):
            value = Quantity(median=value / 1e9, mean=value / 1e9, n=1)
        if row.counts and (shown := spread(value)):
            found.append((row.workload.depth, shown))
    return found


def _looks(series: Mapping[Key, object]) -> dict[Key, dict[str, Any]]:
    engines = [engine for _, engine, _ in series]
    looks = {}
    for place, key in enumerate(series):
        line, marker = LOOKS[engines[:place].count(key[1]) % len(LOOKS)]
        colour = fig.colour_of(key[1])
        looks[key] = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
    return looks


def _draw_depths(
    axes: Axes,
    series: Mapping[Key, Sequence[Row]],
    values: Mapping[Key, Sequence[tuple[int, Spread]]],
    looks: Mapping[Key, dict[str, Any]],
) -> None:
    for key, points in values.items():
        depths = [depth for depth, _ in points]
        axes.plot(depths, [found.median for _, found in points], **looks[key])
        if len(points) == len(series[key]):  # no band across a gap
            lows, highs = [s.low for _, s in points], [s.high for _, s in points]
            axes.fill_between(depths, lows, highs, color=looks[key]["color"], alpha=0.15, lw=0)
    every = sorted({row.workload.depth for rows in series.values() for row in rows})
    shown = _apart(every)
    axes.set_xticks(shown, [f"{depth}" for depth in shown])
    axes.set_xlim(-0.06 * every[-1], 1.06 * every[-1])
    most = max(found.median for points in values.values() for _, found in points)
    axes.set_ylim(0, min(axes.get_ylim()[1], fig.MOST_OF_AXIS * most or 1.0))
    axes.set_xlabel("depth (tokens)")
    axes.grid()


def _draw_missing(axes: Axes, sentence: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    text = textwrap.fill(f"not measured: {plain(sentence, 200)}", 36)
    look: dict[str, Any] = {"ha": "center", "va": "center", "color": fig.DARK_GREY, "fontsize": 8}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, **look)


def _apart(depths: list[int]) -> list[int]:
    """Depths whose labels do not overlap, including the last."""
    kept = [depths[-1]]
    for depth in reversed(depths[:-1]):
        if kept[-1] - depth >= 0.2 * depths[-1]:
            kept.append(depth)
    return kept[::-1]


def _depth_caption(series: Mapping[Key, Sequence[Row]]) -> list[str]:
    rates = [r for rows in series.values() for row in rows if (r := spread(row.decode_tok_s))]
    tests = ", ".join(dict.fromkeys(test for _, _, test in series))
    n = counts(rate.n for rate in rates)
    return [
        f"{tests} after so many tokens in the cache.",
        f"Medians of n = {n} trials, band: {spread_meaning(rates)}.",
        "Memory is the peak of all trials.",
    ]


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

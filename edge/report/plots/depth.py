"""Speed, memory and energy against depth."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from edge.profile.profile import Profile, Row
from edge.report.figure import DARK_GREY, NamedFigure, colour_of, finish, new_figure, style
from edge.report.plots.rows import Spread, absences, counts, spread, spread_kinds
from edge.text import plain

# A CI over two processes can be huge; the axis is clipped to this multiple of the medians.
MOST_OF_AXIS = 1.6
# Colour is the engine's; a second artefact of an engine differs by line and marker.
LOOKS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ("-", "v"), ("--", "X"))
Key = tuple[str, str, str]
Value = Callable[[Row], Spread | None]
PANELS: tuple[tuple[str, Value, tuple[str, ...]], ...] = (
    ("decode throughput (tok/s)", lambda row: spread(row.decode_tok_s), ("decode_tok_s",)),
    ("peak memory (GB)", lambda row: _memory(row), ("peak_memory_bytes",)),
    ("energy (J/token)", lambda row: spread(row.joules_per_token), ("joules_per_token", "power_w")),
)


def depth(profile: Profile) -> NamedFigure | str:
    """Three panels on the same depths, a line for every artefact on its engine."""
    series = _series(profile.rows)
    if not series:
        return "nothing was measured at more than one depth (-d 0,4096, or --suite depth)"
    looks = _looks(series)
    with style():
        figure = new_figure(3.2)
        panels = figure.subplots(1, len(PANELS))
        for axes, (label, value, about) in zip(panels, PANELS, strict=True):
            axes.set_title(label)
            values = {key: _values(rows, value) for key, rows in series.items()}
            if any(values.values()):
                _draw_panel(axes, series, values, looks)
            else:
                _draw_missing(axes, next(iter(series.values()))[0].why_not(*about))
        handles = [
            Line2D([], [], label=plain(f"{key[0]} on {key[1]}", 44), **look)
            for key, look in looks.items()
        ]
        every = [row for rows in series.values() for row in rows]
        hidden = [row for row in every if not row.counts or row.decode_tok_s is None]
        caption = [*_caption(series), *absences(hidden, profile.rows, "decode_tok_s")]
        return finish(figure, "depth", "Against depth", profile, handles, *caption)


def _series(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """Rows of the same artefact, engine and test at two or more depths, by depth."""
    found: dict[Key, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.workload.depth):
        found.setdefault((row.artefact, row.engine, row.workload.test), []).append(row)
    order = dict.fromkeys((row.artefact, row.engine, row.workload.test) for row in rows)
    return {key: found[key] for key in order if len({r.workload.depth for r in found[key]}) > 1}


def _memory(row: Row) -> Spread | None:
    peak = row.peak_memory_bytes
    return None if peak is None else Spread(peak / 1e9, peak / 1e9, peak / 1e9, 1, "")


def _values(rows: Sequence[Row], value: Value) -> list[tuple[int, Spread]]:
    return [(row.workload.depth, found) for row in rows if row.counts and (found := value(row))]


def _looks(series: Mapping[Key, object]) -> dict[Key, dict[str, Any]]:
    """Colour, line and marker of every series."""
    engines = [engine for _, engine, _ in series]
    looks = {}
    for place, key in enumerate(series):
        line, marker = LOOKS[engines[:place].count(key[1]) % len(LOOKS)]
        colour = colour_of(key[1])
        looks[key] = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
    return looks


def _draw_panel(
    axes: Axes,
    series: Mapping[Key, Sequence[Row]],
    values: Mapping[Key, Sequence[tuple[int, Spread]]],
    looks: Mapping[Key, dict[str, Any]],
) -> None:
    for key, points in values.items():
        depths = [depth for depth, _ in points]
        axes.plot(depths, [found.median for _, found in points], **looks[key])
        if len(points) == len(series[key]):  # a gap stays a gap
            lows, highs = [max(s.low, 0.0) for _, s in points], [s.high for _, s in points]
            axes.fill_between(depths, lows, highs, color=looks[key]["color"], alpha=0.15, lw=0)
    every = sorted({row.workload.depth for rows in series.values() for row in rows})
    shown = _apart(every)
    axes.set_xticks(shown, [f"{depth}" for depth in shown])
    axes.set_xlim(-0.06 * every[-1], 1.06 * every[-1])
    most = max(found.median for points in values.values() for _, found in points)
    axes.set_ylim(0, min(axes.get_ylim()[1], MOST_OF_AXIS * most or 1.0))
    axes.set_xlabel("depth (tokens)")
    axes.grid()


def _draw_missing(axes: Axes, sentence: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    text = textwrap.fill(f"not measured: {plain(sentence, 200)}", 36)
    look: dict[str, Any] = {"ha": "center", "va": "center", "color": DARK_GREY, "fontsize": 8}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, **look)


def _apart(depths: list[int]) -> list[int]:
    """Those whose labels do not meet, the last always."""
    kept = [depths[-1]]
    for depth in reversed(depths[:-1]):
        if kept[-1] - depth >= 0.2 * depths[-1]:
            kept.append(depth)
    return kept[::-1]


def _caption(series: Mapping[Key, Sequence[Row]]) -> list[str]:
    rates = [r for rows in series.values() for row in rows if (r := spread(row.decode_tok_s))]
    tests = ", ".join(dict.fromkeys(test for _, _, test in series))
    n = counts(rate.n for rate in rates)
    return [
        f"{tests} after so many tokens in the cache.",
        f"Medians of n = {n} trials, band: {spread_kinds(rates)}.",
        "Memory is the peak of all trials.",
    ]

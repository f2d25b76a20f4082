"""Power over time: prefill and decode shaded, the thermal level beneath."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from edge.device.state import NOMINAL
from edge.report.figure import (
    BLUE,
    DARK_GREY,
    ERROR,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    YELLOW,
    new_figure,
    plain,
    style,
)
from edge.report.frame import NamedFigure, finish
from edge.report.plots.view import RowView, side_by_side, view
from edge.report.values import number, numbers, objects

TITLE = "Power over time"
MOST_ROWS = 6
# A row with its strip, and what the scale of time takes beneath the last.
ROW_IN, TIME_IN = 1.45, 0.4
# More steps than a figure has pixels only make the file large.
MOST_STEPS = 300
RAILS = {"CPU": BLUE, "GPU": ORANGE, "ANE": GREEN, "DRAM": PURPLE}
WINDOWS = {"prefill": SKY, "decode": YELLOW}
LEVELS = {NOMINAL: GREEN, "light": YELLOW, "moderate": ORANGE}


@dataclass(frozen=True)
class _Series:
    """Samples of one process, in seconds since its first; watts per rail."""

    round: Any
    zero_ns: float
    begin_s: list[float]
    end_s: list[float]
    watts: dict[str, list[float]]
    thermal: list[tuple[float, str]]


def missing(profile: Mapping[str, Any]) -> str | None:
    """Why there is no such plot."""
    rows = view(profile)
    if any(_series_of(row) for row in rows):
        return None
    if any(row.spread("power_w") for row in rows):
        return f"{TITLE}: the profile has not kept the power samples."
    why = rows[0].why_not("power_w") if rows else "the profile has no rows"
    return f"{TITLE}: {why}."


def draw(profile: Mapping[str, Any]) -> NamedFigure | None:
    """A row's first measured process each; of many rows six, those with a figure first."""
    if missing(profile):
        return None
    known = [(row, s) for row in side_by_side(view(profile)) if (s := _series_of(row))]
    shown = sorted(known, key=lambda pair: pair[0].spread("power_w") is None)[:MOST_ROWS]
    with style():
        figure = new_figure("power", ROW_IN * len(shown) + TIME_IN)
        top_w = max(max(_totals(series)) for _, series in shown)
        end_s = max(series.end_s[-1] for _, series in shown)
        panels = _panels(figure, len(shown))
        for (row, series), (panel, strip) in zip(shown, panels, strict=True):
            _draw_power(panel, row, series)
            _draw_thermal(strip, series)
            panel.set(xlim=(0, end_s), ylim=(0, 1.08 * top_w or 1.0))
            strip.set_xlim(0, end_s)
        panels[-1][1].tick_params(bottom=True, labelbottom=True)
        panels[-1][1].set_xlabel("time since the first sample of the process (s)")
        handles = _handles(shown)
        return finish(figure, TITLE, _caption(shown, len(known)), profile, handles)


def _panels(figure: Figure, count: int) -> list[tuple[Axes, Axes]]:
    """Pairs of a panel and the strip right beneath it, from top to bottom."""
    ratios = [*[ROW_IN] * (count - 1), ROW_IN + TIME_IN]
    grid = figure.add_gridspec(count, 1, height_ratios=ratios)
    pairs = (grid[n, 0].subgridspec(2, 1, height_ratios=[6, 1], hspace=0.02) for n in range(count))
    return [(figure.add_subplot(pair[0]), figure.add_subplot(pair[1])) for pair in pairs]


def _series_of(row: RowView) -> _Series | None:
    """Of the first process that kept samples."""
    for process in objects(row.data.get("processes")):
        found = process.get("power_series")
        if isinstance(found, Mapping) and (series := _series(found, process.get("round"))):
            return series
    return None


def _series(data: Mapping[str, Any], round_number: Any) -> _Series | None:
    """Checked: as many watts as samples, time that goes on."""
    begins, ends = numbers(data.get("begin_ns")), numbers(data.get("end_ns"))
    rails = data.get("milliwatts")
    if not begins or len(begins) != len(ends) or not isinstance(rails, Mapping):
        return None
    watts = {plain(rail, 20): [mw / 1000 for mw in numbers(v)] for rail, v in rails.items()}
    watts = {rail: v for rail, v in watts.items() if len(v) == len(begins) and min(v) >= 0}
    if (
        not watts
        or begins != sorted(begins)
        or any(e < b for b, e in zip(begins, ends, strict=True))
    ):
        return None
    zero = begins[0]
    thermal = [
        ((at - zero) / 1e9, plain(change.get("level"), 16))
        for change in objects(data.get("thermal"))
        if (at := number(change.get("begin_ns"))) is not None
    ]
    return _Series(
        round_number,
        zero,
        [(b - zero) / 1e9 for b in begins],
        [(e - zero) / 1e9 for e in ends],
        watts,
        sorted(thermal),
    )


def _totals(series: _Series) -> list[float]:
    return [sum(values) for values in zip(*series.watts.values(), strict=True)]


def _draw_power(axes: Axes, row: RowView, series: _Series) -> None:
    for kind, colour in WINDOWS.items():
        for begin_s, end_s in _windows(row, series, kind):
            axes.axvspan(begin_s, end_s, color=colour, alpha=0.35, linewidth=0)
    places = _thinned(series)
    edges = [series.begin_s[i] for i in places] + [series.end_s[-1]]
    base, stack = [0.0] * len(places), []
    for rail, colour in _colours(series).items():
        steps = _means(series.watts[rail], places)
        base = [b + v for b, v in zip(base, steps, strict=True)]
        stack.append((base, colour))
    for top, colour in reversed(stack):  # the lower ones over the higher: no edge drawn twice
        axes.stairs(top, edges, fill=True, color=colour, linewidth=0)
    axes.set_ylabel("power (W)", fontsize=8)
    number_of = number(series.round)
    which = "" if number_of is None else f", round {int(number_of) + 1}"
    axes.set_title(textwrap.shorten(row.heading, 70, placeholder=" …") + which, fontsize=8)
    axes.grid(axis="y")
    axes.tick_params(bottom=False, labelbottom=False)


def _thinned(series: _Series) -> list[int]:
    """First samples of groups that become one step."""
    count = len(series.begin_s)
    return list(range(0, count, max(1, -(-count // MOST_STEPS))))


def _means(values: Sequence[float], places: Sequence[int]) -> list[float]:
    ends = [*places[1:], len(values)]
    return [sum(values[a:b]) / (b - a) for a, b in zip(places, ends, strict=True)]


def _windows(row: RowView, series: _Series, kind: str) -> list[tuple[float, float]]:
    """Timed windows of the process's own trials, in its seconds."""
    found = []
    for trial in row.trials():
        stamps = _stamps(trial, kind)
        if len(stamps) < 2 or trial.get("round") != series.round:
            continue
        begin_s, end_s = ((ns - series.zero_ns) / 1e9 for ns in (stamps[0], stamps[-1]))
        if begin_s < series.end_s[-1] and end_s > 0:
            found.append((begin_s, end_s))
    return found


def _stamps(trial: Mapping[str, Any], kind: str) -> list[float]:
    if kind == "prefill":
        return numbers(trial.get("prefill_ns"))
    return sorted(numbers(trial.get("pass_begin_ns")) + numbers(trial.get("pass_end_ns")))


def _draw_thermal(axes: Axes, series: _Series) -> None:
    """A strip in the level's colour, its name on it where there is room."""
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False)
    axes.set_ylabel("heat", fontsize=7, rotation=0, ha="right", va="center")
    axes.set_ylim(0, 1)
    end_s = series.end_s[-1]
    if not series.thermal:
        axes.text(0, 0.5, " thermal level not measured", va="center", fontsize=7, color=DARK_GREY)
        return
    ends = [at for at, _ in series.thermal[1:]] + [end_s]
    for (begin_s, level), until_s in zip(series.thermal, ends, strict=True):
        begin_s = max(begin_s, 0.0)
        axes.broken_barh([(begin_s, until_s - begin_s)], (0, 1), color=_level_colour(level))
        if until_s - begin_s > 0.09 * end_s:
            axes.text(begin_s, 0.45, f" {level}", va="center", fontsize=7)


def _level_colour(level: str) -> str:
    """Whatever is worse than moderate, or unknown, shows as wrong.

    The first profiles have Apple's spelling, "Nominal".
    """
    return LEVELS.get(level.lower(), ERROR)


def _colours(series: _Series) -> dict[str, str]:
    """Rails that used anything, the known ones first."""
    used = [rail for rail, values in series.watts.items() if max(values) > 0]
    ordered = [r for r in RAILS if r in used] + sorted(set(used) - set(RAILS))
    return {rail: RAILS.get(rail, GREY) for rail in ordered}


def _handles(shown: Sequence[tuple[RowView, _Series]]) -> list[Patch]:
    colours = {rail: colour for _, series in shown for rail, colour in _colours(series).items()}
    handles = [Patch(color=colour, label=rail) for rail, colour in colours.items()]
    for kind, colour in WINDOWS.items():
        if any(_windows(row, series, kind) for row, series in shown):
            handles.append(Patch(color=colour, alpha=0.35, label=f"{kind} window"))
    return handles


def _caption(shown: Sequence[tuple[RowView, _Series]], known: int) -> str:
    row = shown[0][0]
    samples = sorted(len(series.begin_s) for _, series in shown)
    counts = f"{samples[0]}" if samples[0] == samples[-1] else f"{samples[0]} to {samples[-1]}"
    text = f"Mean power of each sample, rails stacked; n = {counts} samples of one process a row."
    power = row.data.get("power")
    if isinstance(power, Mapping) and power.get("boundary"):
        text += f" Boundary: {plain(power['boundary'], 120)}."
    if known > len(shown):
        text += f" Shown: {len(shown)} of {known} rows."
    return text

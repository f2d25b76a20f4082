"""What a longer context costs: speed, memory and energy against depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from edge.report.figure import colour_of, new_figure, plain, say_missing, style
from edge.report.frame import NamedFigure, finish
from edge.report.plots.view import RowView, absences, view
from edge.report.values import number

TITLE = "Against depth"
# A band over two wild processes reaches the moon; the lines are what is to be seen.
MOST_OF_AXIS = 1.6
# Colour is the engine's; a second artefact of an engine differs by line and marker.
LOOKS: tuple[tuple[Literal["-", "--", ":", "-."], str], ...] = (
    ("-", "o"),
    ("--", "s"),
    (":", "^"),
    ("-.", "D"),
    ("-", "v"),
    ("--", "X"),
)
Look = tuple[str, Literal["-", "--", ":", "-."], str]
Value = Callable[[RowView], tuple[float, float, float] | None]
Series = dict[tuple[str, str, str], list[RowView]]


def missing(profile: Mapping[str, Any]) -> str | None:
    """Why there is no such plot: it takes one artefact at two depths."""
    if _series(view(profile)):
        return None
    return f"{TITLE}: nothing was measured at more than one depth (-d 0,4096, or --suite depth)."


def draw(profile: Mapping[str, Any]) -> NamedFigure | None:
    """Three panels on the same depths, a line for every artefact on its engine."""
    if missing(profile):
        return None
    series = _series(view(profile))
    with style():
        figure = new_figure("depth", 3.2)
        panels = figure.subplots(1, len(PANELS))
        looks = _looks(series)
        for axes, (label, value, about) in zip(panels, PANELS, strict=True):
            _draw_panel(axes, series, looks, label, value, about)
        handles = [_handle(key, looks[key]) for key in series]
        absent = absences(
            [r for rows in series.values() for r in rows if not (r.counts and _rate(r))],
            "decode_tok_s",
        )
        return finish(figure, TITLE, _caption(series), profile, handles, *absent)


def _series(rows: Sequence[RowView]) -> Series:
    """Rows of the same artefact, engine and test; only what has two depths, by depth."""
    found: Series = {}
    for row in rows:
        test = row.workload.split(" @ ")[0]
        found.setdefault((row.artefact, row.engine, test), []).append(row)
    several = {key: group for key, group in found.items() if len({r.depth for r in group}) > 1}
    return {key: sorted(group, key=lambda r: r.depth) for key, group in several.items()}


def _rate(row: RowView) -> tuple[float, float, float] | None:
    return _quantity(row, "decode_tok_s")


def _memory(row: RowView) -> tuple[float, float, float] | None:
    found = number(row.data.get("peak_memory_bytes"))
    return None if found is None else (found / 1e9,) * 3


def _energy(row: RowView) -> tuple[float, float, float] | None:
    return _quantity(row, "joules_per_token")


def _quantity(row: RowView, name: str) -> tuple[float, float, float] | None:
    found = row.spread(name)
    return None if found is None else (found.median, max(found.low, 0.0), found.high)


PANELS: tuple[tuple[str, Value, tuple[str, ...]], ...] = (
    ("decode throughput (tok/s)", _rate, ("decode_tok_s",)),
    ("peak memory (GB)", _memory, ("peak_memory_bytes",)),
    ("energy (J/token)", _energy, ("joules_per_token", "power_w")),
)


def _looks(series: Series) -> dict[tuple[str, str, str], Look]:
    """Colour, line and marker of every series."""
    seen: dict[str, int] = {}
    looks = {}
    for key in series:
        engine = key[1]
        line, marker = LOOKS[seen.get(engine, 0) % len(LOOKS)]
        seen[engine] = seen.get(engine, 0) + 1
        looks[key] = (colour_of(engine), line, marker)
    return looks


def _handle(key: tuple[str, str, str], look: Look) -> Line2D:
    colour, line, marker = look
    label = plain(f"{key[0]} on {key[1]}", 44)
    return Line2D([], [], color=colour, linestyle=line, marker=marker, markersize=4, label=label)


def _draw_panel(
    axes: Axes,
    series: Series,
    looks: Mapping[tuple[str, str, str], Look],
    label: str,
    value: Value,
    about: tuple[str, ...],
) -> None:
    axes.set_title(label)
    drawn = [_draw_line(axes, rows, looks[key], value) for key, rows in series.items()]
    if not any(drawn):
        first = next(iter(series.values()))[0]
        say_missing(axes, plain(first.why_not(*about), 200))
        return
    depths = sorted({row.depth for rows in series.values() for row in rows})
    axes.xaxis.set_major_locator(FixedLocator(_apart(depths)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda depth, _: f"{depth:g}"))
    axes.set_xlim(-0.06 * depths[-1], 1.06 * depths[-1])
    middles = [
        found[0] for rows in series.values() for r in rows if r.counts and (found := value(r))
    ]
    axes.set_ylim(0, min(axes.get_ylim()[1], MOST_OF_AXIS * max(middles) or 1.0))
    axes.set_xlabel("depth (tokens)")
    axes.grid()


def _draw_line(axes: Axes, rows: list[RowView], look: Look, value: Value) -> bool:
    """Whether there was a value at all; a gap stays a gap."""
    colour, line, marker = look
    values = [(row.depth, found) for row in rows if row.counts and (found := value(row))]
    if not values:
        return False
    depths = [depth for depth, _ in values]
    middles = [found[0] for _, found in values]
    axes.plot(depths, middles, color=colour, linestyle=line, marker=marker, markersize=4)
    if len(values) == len(rows):
        lows, highs = [f[1] for _, f in values], [f[2] for _, f in values]
        axes.fill_between(depths, lows, highs, color=colour, alpha=0.15, linewidth=0)
    return True


def _apart(depths: list[int]) -> list[int]:
    """Those whose labels do not meet, the last always."""
    kept = [depths[-1]]
    for depth in reversed(depths[:-1]):
        if kept[-1] - depth >= 0.2 * depths[-1]:
            kept.append(depth)
    return kept[::-1]


def _caption(series: Series) -> str:
    rates = [r for rows in series.values() for row in rows if (r := row.spread("decode_tok_s"))]
    counts = " or ".join(map(str, sorted({rate.n for rate in rates}))) or "0"
    interval = any(rate.kind == "ci95" for rate in rates)
    band = "95 % interval of the mean" if interval else "± 1 standard deviation"
    tests = ", ".join(dict.fromkeys(key[2] for key in series))
    return (
        f"{tests} after so many tokens in the cache. Medians of n = {counts} trials, band: {band}; "
        f"memory is the peak of all trials. All scales begin at zero."
    )

"""Joules per token against tokens per second: which precision is worth its watts?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from edge.report.figure import (
    GREEN,
    INK,
    NamedFigure,
    colour_of,
    engine_handles,
    finish,
    new_figure,
    plain,
    style,
)
from edge.report.plots.labels import place_labels
from edge.report.plots.view import RowView, Spread, main_workload, number, view

TITLE = "Energy against speed"
SMALLEST, LARGEST = 30.0, 220.0


@dataclass(frozen=True)
class _Point:
    row: RowView
    rate: Spread
    joules: Spread


def missing(profile: Mapping[str, Any]) -> str | None:
    """Why there is no such plot."""
    rows = view(profile)
    if _points(rows):
        return None
    why = rows[0].why_not("joules_per_token", "power_w") if rows else "the profile has no rows"
    return f"{TITLE}: {why}."


def draw(profile: Mapping[str, Any]) -> NamedFigure | None:
    """Rows of one workload: joules of another say nothing beside them."""
    if missing(profile):
        return None
    rows = view(profile)
    points = _points(rows)
    with style():
        figure = new_figure("energy", 4.4)
        axes = figure.add_subplot()
        _draw_front(axes, points)
        sizes = _sizes(points)
        for point, size in zip(points, sizes, strict=True):
            _draw_point(axes, point, size)
        _dress(axes, points)
        places = [(p.rate.median, p.joules.median) for p in points]
        place_labels(figure, axes, places, [_label(p) for p in points], _obstacles(points))
        stairs = Line2D([], [], color=GREEN, linestyle="--", label="nothing is better in both")
        handles = engine_handles([p.row.engine for p in points], stairs)
        absent = _absent(rows, points)
        return finish(figure, TITLE, _caption(rows, points), profile, handles, *absent)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of (tok/s, J/token) that no other point beats in both, slowest first."""
    best: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if not best or points[place][1] < points[best[-1]][1]:
            best.append(place)
    return best[::-1]


def quality_of(row: RowView) -> tuple[str, float] | None:
    """The first number of a row's quality, with its name."""
    quality = row.data.get("quality")
    if not isinstance(quality, Mapping):
        return None
    found = ((str(name), number(value)) for name, value in quality.items())
    return next(((name, value) for name, value in found if value is not None), None)


def _points(rows: Sequence[RowView]) -> list[_Point]:
    workload = main_workload(rows, "joules_per_token")
    found = []
    for row in rows:
        rate, joules = row.spread("decode_tok_s"), row.spread("joules_per_token")
        if row.workload == workload and rate and joules:
            found.append(_Point(row, rate, joules))
    return found


def _sizes(points: Sequence[_Point]) -> list[float]:
    """By quality where all have the same one; which way is better, its name must tell."""
    found = [quality_of(p.row) for p in points]
    known = [q[1] for q in found if q is not None]
    names = {q[0] for q in found if q is not None}
    if len(known) < len(points) or len(names) != 1 or min(known) == max(known):
        return [70.0] * len(points)
    width = max(known) - min(known)
    return [SMALLEST + (LARGEST - SMALLEST) * (value - min(known)) / width for value in known]


def _draw_point(axes: Axes, point: _Point, size: float) -> None:
    rate, joules = point.rate, point.joules
    axes.errorbar(
        rate.median,
        joules.median,
        xerr=_error(rate),
        yerr=_error(joules),
        color=INK,
        linewidth=0.8,
        capsize=2,
    )
    marker = "s" if point.row.framework == "GGUF" else "o"
    axes.scatter(
        rate.median,
        joules.median,
        s=size,
        marker=marker,
        color=colour_of(point.row.engine),
        edgecolor=INK,
        linewidth=0.6,
        zorder=3,
    )


def _error(value: Spread) -> list[list[float]] | None:
    if value.kind is None:
        return None
    low = value.median - max(min(value.low, value.median), 0.0)
    return [[low], [max(value.high - value.median, 0.0)]]


def _draw_front(axes: Axes, points: Sequence[_Point]) -> None:
    """Stairs: what lies above or left of them is beaten."""
    found = [(p.rate.median, p.joules.median) for p in points]
    best = [found[i] for i in front(found)]
    x = [0.0, *(b[0] for b in best)]
    y = [best[0][1], *(b[1] for b in best)]
    axes.plot(x, y, drawstyle="steps-pre", color=GREEN, linestyle="--", linewidth=1.2)
    axes.plot([x[-1]] * 2, [y[-1], 10 * y[-1]], color=GREEN, linestyle="--", linewidth=1.2)


def _dress(axes: Axes, points: Sequence[_Point]) -> None:
    axes.set_xlim(0, 1.2 * max(p.rate.median for p in points))
    axes.set_ylim(0, 1.2 * max(p.joules.median for p in points))
    axes.set_xlabel("decode throughput (tok/s), more is better")
    axes.set_ylabel("energy (J/token), less is better")
    axes.grid()


def _label(point: _Point) -> str:
    quality = quality_of(point.row)
    name = plain(point.row.artefact, 28)
    return name if quality is None else f"{name}\n{plain(quality[0], 20)} {quality[1]:.3g}"


def _obstacles(points: Sequence[_Point]) -> list[tuple[float, float]]:
    return [(p.rate.median, p.joules.median) for p in points]


def _absent(rows: Sequence[RowView], points: Sequence[_Point]) -> list[str]:
    shown, workload = {id(p.row) for p in points}, points[0].row.workload
    return [
        f"{row.label} not measured: {row.why_not('joules_per_token', 'power_w')}."
        for row in rows
        if row.workload == workload and id(row) not in shown
    ]


def _caption(rows: Sequence[RowView], points: Sequence[_Point]) -> str:
    counts = " or ".join(map(str, sorted({p.joules.n for p in points})))
    kinds = {p.joules.kind for p in points}
    bars = "95 % interval of the mean" if "ci95" in kinds else "± 1 standard deviation"
    text = f"{points[0].row.workload}. Medians of n = {counts} trials, bars: {bars}. Gross energy"
    power = points[0].row.data.get("power")
    if isinstance(power, Mapping) and power.get("boundary"):
        text += f" of {plain(power['boundary'], 120)}"
    text += ". Circles MLX, squares GGUF."
    if len(set(_sizes(points))) > 1:
        text += " A marker is the larger, the larger the quality figure beside its name."
    elif all(quality_of(p.row) is None for p in points):
        text += " Quality was not measured."
    if len({row.workload for row in rows}) > 1:
        text += " Rows of other workloads are left out."
    return text

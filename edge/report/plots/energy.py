"""Joules per token against tokens per second: which precision is worth its watts?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from edge.report.figure import GREEN, INK, colour_of, engine_handles, new_figure, plain, style
from edge.report.frame import NamedFigure, finish
from edge.report.plots.labels import Place, place_labels
from edge.report.plots.view import RowView, Spread, absences, main_workload, view
from edge.report.quality import small

TITLE = "Energy against speed"
MARKER_AREA = 70


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
        stairs = _draw_front(axes, points)
        for point in points:
            _draw_point(axes, point)
        _dress(axes, points)
        labels = [_label(point) for point in points]
        place_labels(figure, axes, _places(points), labels, _bars(points))
        handles = engine_handles([p.row.engine for p in points], *stairs)
        absent = _absent(rows, points)
        return finish(figure, TITLE, _caption(rows, points), profile, handles, *absent)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of (tok/s, J/token) that no other point beats in both, slowest first."""
    best: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if not best or points[place][1] < points[best[-1]][1]:
            best.append(place)
    return best[::-1]


def _points(rows: Sequence[RowView]) -> list[_Point]:
    workload = main_workload(rows, "joules_per_token")
    found = []
    for row in rows:
        rate, joules = row.spread("decode_tok_s"), row.spread("joules_per_token")
        if row.workload == workload and row.counts and rate and joules:
            found.append(_Point(row, rate, joules))
    return found


def _places(points: Sequence[_Point]) -> list[tuple[float, float]]:
    return [(p.rate.median, p.joules.median) for p in points]


def _bars(points: Sequence[_Point]) -> list[tuple[Place, Place]]:
    """Where the error bars begin and end."""
    level = [((p.rate.low, p.joules.median), (p.rate.high, p.joules.median)) for p in points]
    upright = [((p.rate.median, p.joules.low), (p.rate.median, p.joules.high)) for p in points]
    return level + upright


def _draw_point(axes: Axes, point: _Point) -> None:
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
        s=MARKER_AREA,
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


def _draw_front(axes: Axes, points: Sequence[_Point]) -> list[Line2D]:
    """Stairs, and their entry in the legend: what lies above or left of them is beaten."""
    if len(points) < 2:
        return []
    found = _places(points)
    best = [found[i] for i in front(found)]
    x = [0.0, *(b[0] for b in best)]
    y = [best[0][1], *(b[1] for b in best)]
    axes.plot(x, y, drawstyle="steps-pre", color=GREEN, linestyle="--", linewidth=1.2)
    axes.plot([x[-1]] * 2, [y[-1], 10 * y[-1]], color=GREEN, linestyle="--", linewidth=1.2)
    return [Line2D([], [], color=GREEN, linestyle="--", label="nothing is better in both")]


def _dress(axes: Axes, points: Sequence[_Point]) -> None:
    axes.set_xlim(0, 1.2 * max(p.rate.median for p in points))
    axes.set_ylim(0, 1.2 * max(p.joules.median for p in points))
    axes.set_xlabel("decode throughput (tok/s), more is better")
    axes.set_ylabel("energy (J/token), less is better")
    axes.grid()


def _label(point: _Point) -> str:
    """The row's name, and what its precision costs where that is known."""
    name, quality = plain(point.row.name, 36), point.row.quality
    if quality is None:
        return name
    if quality.kl_mean is not None:
        return f"{name}\nKL {small(quality.kl_mean)} nats"
    if quality.perplexity_ratio is not None:
        return f"{name}\nperplexity ratio {quality.perplexity_ratio:.3f}"
    return f"{name}\nperplexity {quality.perplexity:.3g}" if quality.perplexity else name


def _absent(rows: Sequence[RowView], points: Sequence[_Point]) -> list[str]:
    shown, workload = {id(p.row) for p in points}, points[0].row.workload
    others = [row for row in rows if row.workload == workload and id(row) not in shown]
    return absences(others, "joules_per_token", "power_w")


def _no_quality(points: Sequence[_Point]) -> str:
    why = points[0].row.why_not("quality")
    return f"{why[0].upper()}{why[1:]}." if "quality" in why else "Quality was not measured."


def _caption(rows: Sequence[RowView], points: Sequence[_Point]) -> str:
    counts = " or ".join(map(str, sorted({p.joules.n for p in points})))
    kinds = {p.joules.kind for p in points}
    bars = "95 % interval of the mean" if "ci95" in kinds else "± 1 standard deviation"
    text = f"{points[0].row.workload}. Medians of n = {counts} trials, bars: {bars}. Gross energy"
    power = points[0].row.data.get("power")
    if isinstance(power, Mapping) and power.get("boundary"):
        text += f" of {plain(power['boundary'], 120)}"
    text += ". Circles MLX, squares GGUF."
    if all(p.row.quality is None for p in points):
        text += f" {_no_quality(points)}"
    if len({row.workload for row in rows}) > 1:
        text += " Rows of other workloads are left out."
    return text

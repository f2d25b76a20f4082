"""What a precision costs: divergence from the reference against bytes per weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from edge.report.figure import INK, colour_of, engine_handles, new_figure, plain, style
from edge.report.frame import NamedFigure, finish
from edge.report.plots.labels import Place, place_labels
from edge.report.plots.ticks import label_log
from edge.report.plots.view import RowView, absences, view
from edge.report.quality import small

TITLE = "What a precision costs"
LEAST_POINTS = 2
# A divergence that rounding alone explains, and none at all, stand on the lower edge.
LEAST_KL = 1e-7
EDGE_FACTOR = 4.0


@dataclass(frozen=True)
class _Point:
    row: RowView
    bytes_per_weight: float
    kl: float

    @property
    def has_height(self) -> bool:
        return self.kl >= LEAST_KL


def missing(profile: Mapping[str, Any]) -> str | None:
    """Why there is no such plot: it takes two artefacts with a divergence."""
    rows = view(profile)
    points = _points(rows)
    if len(points) >= LEAST_POINTS and any(point.has_height for point in points):
        return None
    if points:
        return f"{TITLE}: fewer than two rows have a KL divergence that is not 0."
    why = rows[0].why_not("quality") if rows else "the profile has no rows"
    return f"{TITLE}: {why}."


def draw(profile: Mapping[str, Any]) -> NamedFigure | None:
    """A point for every artefact; to the left is smaller, below is closer to the reference."""
    if missing(profile):
        return None
    rows = view(profile)
    points = _points(rows)
    with style():
        figure = new_figure("precision", 3.8)
        axes = figure.add_subplot()
        floor = _scale(axes, points)
        tails = [_tail(point, floor) for point in points]
        for point, tail in zip(points, tails, strict=True):
            _draw_point(axes, point, tail)
        labels = [_label(point) for point in points]
        place_labels(figure, axes, [foot for foot, _ in tails], labels, tails)
        handles = engine_handles([point.row.engine for point in points])
        absent = _absent(rows, points)
        return finish(figure, TITLE, _caption(points), profile, handles, *absent)


def _points(rows: Sequence[RowView]) -> list[_Point]:
    """Of an artefact that has several rows on an engine the first: depth changes no weight."""
    found: dict[str, _Point] = {}
    for row in rows:
        kl = row.quality.kl_mean if row.quality else None
        if kl is not None and row.bits and row.counts:
            found.setdefault(row.name, _Point(row, row.bits / 8, kl))
    return list(found.values())


def _scale(axes: Axes, points: Sequence[_Point]) -> float:
    """Limits, ticks and labels; gives the lower edge."""
    known = [point.kl for point in points if point.has_height]
    tails = [p99 for p in points if p.row.quality and (p99 := p.row.quality.kl_p99)]
    low, high = min(known) / EDGE_FACTOR, max([*known, *tails]) * EDGE_FACTOR / 2
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    label_log(axes.yaxis, low, high)
    axes.set_xlim(0, 1.2 * max(point.bytes_per_weight for point in points))
    axes.set_xlabel("bytes per weight, less is smaller")
    axes.set_ylabel("KL divergence (nats per token, log)")
    axes.grid()
    return low


def _tail(point: _Point, floor: float) -> tuple[Place, Place]:
    """Where the point stands, and how far its 99th percentile reaches, if at all."""
    x, y = point.bytes_per_weight, max(point.kl, floor)
    quality = point.row.quality
    return (x, y), (x, max(y, (quality.kl_p99 if quality else None) or 0.0))


def _draw_point(axes: Axes, point: _Point, tail: tuple[Place, Place]) -> None:
    (x, y), (_, end) = tail
    if end > y:
        axes.plot([x, x], [y, end], color=INK, linewidth=0.8)
        axes.plot([x], [end], marker="_", color=INK, markersize=7)
    square = point.row.framework == "GGUF"
    axes.scatter(
        x,
        y,
        s=70,
        marker="v" if not point.has_height else "s" if square else "o",
        color=colour_of(point.row.engine),
        edgecolor=INK,
        linewidth=0.6,
        zorder=3,
        clip_on=False,
    )


def _label(point: _Point) -> str:
    quality = point.row.quality
    text = f"{plain(point.row.name, 36)}\n{small(point.kl)} nats"
    if quality and quality.top1_agreement is not None:
        text += f", top-1 {quality.top1_agreement:.1%}"
    return text


def _absent(rows: Sequence[RowView], points: Sequence[_Point]) -> list[str]:
    """A sentence for every artefact that is not shown."""
    shown = {point.row.name for point in points}
    others = {row.name: row for row in reversed(rows) if row.name not in shown}
    return absences(list(reversed(others.values())), "quality")


def _caption(points: Sequence[_Point]) -> str:
    found = [point.row.quality for point in points if point.row.quality]
    counts = sorted({q.tokens for q in found if q.tokens})
    tokens = " or ".join(map(str, counts)) or "an unknown number of"
    names = dict.fromkeys(q.reference for q in found if q.reference)
    reference = " or ".join(names) or "a reference that is not named"
    corpora = " or ".join(dict.fromkeys(q.corpus for q in found if q.corpus))
    text = f"Mean KL divergence of the next token from {reference}, over n = {tokens} tokens"
    text += f" of {corpora}." if corpora else "."
    if any(q.kl_p99 is not None for q in found):
        text += " Whisker: to the 99th percentile of tokens."
    kinds = {point.row.framework for point in points if point.has_height}
    if len(kinds) > 1:
        text += " Circles MLX, squares GGUF."
    if any(not point.has_height for point in points):
        text += f" A triangle on the lower edge: less than {LEAST_KL:g} nats, or the reference."
    return text

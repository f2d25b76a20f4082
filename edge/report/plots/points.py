"""A point for every row: joules per token against speed, and divergence against bytes."""

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from edge.profile.profile import Profile, Row
from edge.report import figure as fig
from edge.report.plots.rows import (
    NO_ROWS,
    Spread,
    absences,
    counts,
    first,
    label_log,
    spread,
    spread_meaning,
)
from edge.text import figure as number
from edge.text import plain

# Divergences below this are rounding; they are drawn on the lower edge.
LEAST_KL = 1e-7
EDGE_FACTOR = 4.0
Point = tuple[float, float]
# Right, left, above, below, then the corners.
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
ALIGNMENT: dict[int, Literal["left", "center", "right"]] = {1: "left", 0: "center", -1: "right"}
DISTANCES_PT = (10, 18, 28, 40, 54, 70, 90)
POINT_PIXELS = 9
MOST_POINTS = 30


def energy(profile: Profile) -> fig.NamedFigure | str:
    """Joules per token against decode rate, for the workload with the most values."""
    every = profile.rows
    tests = [str(row.workload) for row in every if row.joules_per_token is not None]
    main = max(dict.fromkeys(tests), key=tests.count, default=None)
    rows = [row for row in every if str(row.workload) == main]
    shown = [
        (row, rate, joules)
        for row in rows
        if row.counts and (rate := spread(row.decode_tok_s))
        if (joules := spread(row.joules_per_token))
    ]
    if not shown:
        return every[0].why_not("joules_per_token") if every else NO_ROWS
    absent = absences(rows, [r for r, _, _ in shown], every, "joules_per_token")
    drawn, others = first(shown, MOST_POINTS)
    points = [(rate.median, joules.median) for _, rate, joules in drawn]
    with fig.style():
        figure = fig.new_figure(4.4)
        axes = figure.add_subplot()
        handles = fig.engine_handles(
            [row.engine for row, _, _ in drawn], *_draw_front(axes, points)
        )
        for row, rate, joules in drawn:
            _draw_errors(axes, rate, joules)
            _draw_point(axes, row, (rate.median, joules.median))
        axes.set_xlim(0, 1.2 * max(x for x, _ in points) or 1.0)
        axes.set_ylim(0, 1.2 * max(y for _, y in points) or 1.0)
        axes.set_xlabel("decode throughput (tok/s), more is better")
        axes.set_ylabel("energy (J/token), less is better")
        axes.grid()
        level = [((r.low, j.median), (r.high, j.median)) for _, r, j in drawn]
        upright = [((r.median, j.low), (r.median, j.high)) for _, r, j in drawn]
        labels = [_cost_label(row) for row, _, _ in drawn]
        _place_labels(figure, axes, points, labels, level + upright)
        caption = _energy_caption(drawn[0][0], [joules for _, _, joules in drawn])
        if len(rows) < len(every):
            caption.append("Rows of other workloads are not shown.")
        caption += others + absent
        return fig.finish(figure, "energy", "Energy against speed", profile, handles, *caption)


def front(points: Sequence[Point]) -> list[int]:
    """Pareto front: indices of (tok/s, J/token) that no point beats in both, slowest first."""
    best: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if not best or points[place][1] < points[best[-1]][1]:
            best.append(place)
    return best[::-1]


def _draw_front(axes: Axes, points: Sequence[Point]) -> list[Line2D]:
    """Draw the front as stairs; returns its legend entry."""
    if len(points) < 2:
        return []
    best = [points[i] for i in front(points)]
    x, y = [0.0, *(b[0] for b in best)], [best[0][1], *(b[1] for b in best)]
    axes.plot(x, y, drawstyle="steps-pre", color=fig.GREEN, linestyle="--", linewidth=1.2)
    axes.plot([x[-1]] * 2, [y[-1], 10 * y[-1]], color=fig.GREEN, linestyle="--", linewidth=1.2)
    return [Line2D([], [], color=fig.GREEN, linestyle="--", label="nothing is better in both")]


def _draw_errors(axes: Axes, rate: Spread, joules: Spread) -> None:
    look: dict[str, Any] = {"color": fig.INK, "linewidth": 0.8, "capsize": 2}
    axes.errorbar(rate.median, joules.median, xerr=rate.errors, yerr=joules.errors, **look)


def _cost_label(row: Row) -> str:
    name, quality = plain(row.with_peer(row.artefact), 36), row.quality
    if quality is None:
        return name
    if quality.kl_mean is not None:
        return f"{name}\nKL {number(quality.kl_mean, 2)} nats"
    if quality.perplexity_ratio is not None:
        return f"{name}\nperplexity ratio {quality.perplexity_ratio:.3f}"
    return f"{name}\nperplexity {number(quality.perplexity)}" if quality.perplexity else name


def _energy_caption(row: Row, joules: Sequence[Spread]) -> list[str]:
    n = counts(found.n for found in joules)
    boundary = f" of {plain(row.power.boundary, 120)}" if row.power and row.power.boundary else ""
    sentences = [
        f"{row.workload}. Medians of n = {n} trials, bars: {spread_meaning(joules)}.",
        f"Gross energy{boundary}. Circles MLX, squares GGUF.",
    ]
    return sentences if row.quality else [*sentences, "Quality was not measured."]


def precision(profile: Profile) -> fig.NamedFigure | str:
    """KL divergence against bytes per weight, a point per artefact and engine.

    Of several rows of an artefact the first is drawn: the weights are the same.
    """
    every = profile.rows
    artefacts: dict[str, Row] = {}
    for row in every:
        artefacts.setdefault(row.with_peer(row.artefact), row)
    kls = {
        name: row.quality.kl_mean
        for name, row in artefacts.items()
        if row.quality and row.quality.kl_mean is not None and row.bits_per_weight and row.counts
    }
    if not kls:
        return every[0].why_not("quality") if every else NO_ROWS
    if len(kls) < 2 or max(kls.values()) < LEAST_KL:
        return "fewer than two rows have a KL divergence that is not 0"
    measured = [artefacts[name] for name in kls]
    absent = absences([*artefacts.values()], measured, every, "quality")
    rows, others = first(measured, MOST_POINTS)
    with fig.style():
        figure = fig.new_figure(3.8)
        axes = figure.add_subplot()
        floor = _scale(axes, rows, [kl for kl in kls.values() if kl >= LEAST_KL])
        points = [
            ((row.bits_per_weight or 0) / 8, max(kl, floor))
            for row, kl in zip(rows, kls.values(), strict=False)
        ]
        whiskers = [_draw_kl(axes, row, point) for row, point in zip(rows, points, strict=True)]
        _place_labels(figure, axes, points, [_kl_label(row) for row in rows], whiskers)
        handles = fig.engine_handles([row.engine for row in rows])
        caption = _precision_caption(rows, min(kls.values()) < LEAST_KL)
        caption += others + absent
        return fig.finish(figure, "precision", "What a precision costs", profile, handles, *caption)


def _scale(axes: Axes, rows: Sequence[Row], kls: Sequence[float]) -> float:
    """Set limits, ticks and labels; returns the lower limit."""
    tails = [row.quality.kl_p99 for row in rows if row.quality and row.quality.kl_p99]
    low, high = min(kls) / EDGE_FACTOR, max([*kls, *tails]) * EDGE_FACTOR / 2
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    label_log(axes.yaxis, low, high)
    axes.set_xlim(0, 1.2 * max(row.bits_per_weight or 0 for row in rows) / 8)
    axes.set_xlabel("bytes per weight, less is smaller")
    axes.set_ylabel("KL divergence (nats per token, log)")
    axes.grid()
    return low


def _draw_kl(axes: Axes, row: Row, point: Point) -> tuple[Point, Point]:
    """Draw a point and its whisker to the 99th percentile; returns the whisker's ends."""
    x, y = point
    quality = row.quality
    end = max(y, (quality.kl_p99 if quality else None) or 0.0)
    if end > y:
        axes.plot([x, x], [y, end], color=fig.INK, linewidth=0.8)
        axes.plot([x], [end], marker="_", color=fig.INK, markersize=7)
    has_height = quality is not None and (quality.kl_mean or 0.0) >= LEAST_KL
    _draw_point(axes, row, point, None if has_height else "v")
    return (x, y), (x, end)


def _kl_label(row: Row) -> str:
    quality, text = row.quality, plain(row.with_peer(row.artefact), 36)
    if quality is not None:
        text += f"\n{number(quality.kl_mean, 2)} nats"
        if quality.top1_agreement is not None:
            text += f", top-1 {quality.top1_agreement:.1%}"
    return text


def _precision_caption(rows: Sequence[Row], on_edge: bool) -> list[str]:
    found = [row.quality for row in rows if row.quality]
    tokens = counts(quality.tokens for quality in found if quality.tokens)
    names = dict.fromkeys(plain(q.reference, 40) for q in found if q.reference)
    corpora = dict.fromkeys(plain(q.corpus, 40) for q in found if q.corpus)
    corpus = f" of {' or '.join(corpora)}" if corpora else ""
    reference = " or ".join(names) or "an unnamed reference"
    sentences = [
        f"Mean KL divergence of the next token from {reference}, over n = {tokens} tokens{corpus}.",
        "Circles MLX, squares GGUF.",
    ]
    if any(quality.kl_p99 is not None for quality in found):
        sentences.append("Whisker: to the 99th percentile of tokens.")
    if on_edge:
        sentences.append(f"A triangle on the lower edge: less than {LEAST_KL:g} nats.")
    return sentences


def _draw_point(axes: Axes, row: Row, place: Point, marker: str | None = None) -> None:
    axes.scatter(
        *place,
        s=70,
        marker=marker or ("s" if row.framework == "GGUF" else "o"),
        color=fig.colour_of(row.engine),
        edgecolor=fig.INK,
        linewidth=0.6,
        zorder=3,
        clip_on=False,
    )


def _place_labels(
    figure: Figure, axes: Axes, points: Sequence[Point], texts: Sequence[str], lines: Sequence[Any]
) -> None:
    """Write each text at the first free place near its point; the axes must have their limits.

    `lines` are the ends of vertical or horizontal lines that no text should cover.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    frame = axes.get_window_extent()
    pixels = [axes.transData.transform(place) for place in points]
    taken = [Bbox.from_bounds(x - POINT_PIXELS, y - POINT_PIXELS, 18, 18) for x, y in pixels]
    taken += [Bbox(axes.transData.transform(ends)).padded(1.5) for ends in lines]
    look: dict[str, Any] = {
        "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5},
        "arrowprops": {"arrowstyle": "-", "color": fig.DARK_GREY, "linewidth": 0.6, "shrinkB": 5},
    }
    for point, text in zip(points, texts, strict=True):
        note = axes.annotate(
            text, point, (0, 0), textcoords="offset points", fontsize=8, va="center", **look
        )
        for distance, (dx, dy) in product(DISTANCES_PT, SIDES):
            note.set_position((distance * dx, distance * dy))
            note.set_horizontalalignment(ALIGNMENT[dx])
            note.update_positions(renderer)
            box = Text.get_window_extent(note).padded(1.5)  # without its line
            inside = frame.containsx(box.x0) and frame.containsx(box.x1)
            inside = inside and frame.containsy(box.y0) and frame.containsy(box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)

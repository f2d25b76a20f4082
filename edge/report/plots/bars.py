"""A bar for every row: decode throughput, and memory traffic against the roofline."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from edge.profile.profile import Profile, Row
from edge.report import figure as fig
from edge.report.plots.rows import (
    NO_ROWS,
    Spread,
    counts,
    first,
    spread,
    spread_meaning,
)
from edge.report.published import is_published_model, table11, table11_rows
from edge.report.table import has_tests, row_label, side_by_side
from edge.text import figure as number
from edge.text import plain

MOST_BARS = 30
LABEL_CHARACTERS, REASON_CHARACTERS = 34, 78
# Labels of hatched bars, which are not valid figures.
INVALID, ERROR = "INVALID: not a valid figure", "above the peak: an error"


@dataclass(frozen=True)
class Bar:
    """A bar and its text, behind `end` or, if that is more than `inside`, before it."""

    length: float
    text: str
    end: float
    hatch: str | None
    inside: float = float("inf")


def throughput(profile: Profile) -> fig.NamedFigure | str:
    """Median decode rate of every row as a bar, trials as dots, published rates as marks."""
    if not profile.rows:
        return NO_ROWS
    rows, others = _shown(profile)
    rates = [spread(row.decode_tok_s) for row in rows]
    trials = [[t.decode_tok_s for t in row.counted if t.decode_tok_s is not None] for row in rows]
    published = _published(profile, rows)
    known = [rate for rate in rates if rate is not None]
    values = [*(rate.median for rate in known), *chain.from_iterable(trials), *published.values()]
    most = max(values, default=1.0)
    limit = 1.14 * max([most, *(min(rate.high, fig.MOST_OF_AXIS * most) for rate in known)]) or 1.0
    bars: list[Bar | str] = [
        row.why_not("decode_tok_s") if rate is None else _rate_bar(row, rate, values, limit)
        for row, rate, values in zip(rows, rates, trials, strict=True)
    ]
    with fig.style():
        figure, axes = _row_bars(rows, bars, limit, "decode throughput (tok/s)")
        for y, (rate, values) in enumerate(zip(rates, trials, strict=True)):
            if rate is not None:
                _draw_trials(axes, y, rate, values)
        for y, theirs in published.items():
            axes.plot([theirs] * 2, [y - 0.42, y + 0.42], color="white", linewidth=4, zorder=4)
            axes.plot([theirs] * 2, [y - 0.42, y + 0.42], color=fig.INK, linewidth=2, zorder=5)
        handles = _handles(bars, any(trials), bool(published))
        handles = fig.engine_handles([row.engine for row in rows], *handles)
        caption = _throughput_caption(rows, known, limit, bool(published))
        caption += others
        return fig.finish(figure, "throughput", "Decode throughput", profile, handles, *caption)


def _shown(profile: Profile) -> tuple[Sequence[Row], list[str]]:
    """Rows that the plot has room for, those with a rate first if not all fit."""
    rows = side_by_side(profile.rows)
    if len(rows) > MOST_BARS:
        rows.sort(key=lambda row: row.decode_tok_s is None)
    return first(rows, MOST_BARS)


def _rate_bar(row: Row, rate: Spread, trials: Sequence[float], limit: float) -> Bar:
    text = number(rate.median) + ("" if row.verdict == "VALID" else f"  {row.verdict}")
    end = min(max(rate.high, rate.median, *trials), limit)
    return Bar(rate.median, text, end, None if row.counts else INVALID)


def _draw_trials(axes: Axes, y: int, rate: Spread, values: Sequence[float]) -> None:
    if rate.sd is not None:
        axes.errorbar(rate.median, y, xerr=rate.errors, color=fig.INK, capsize=3)
    # From top to bottom in time order, so that a drift shows as a slant.
    steps = [y - 0.2 + 0.4 * (i + 0.5) / len(values) for i in range(len(values))]
    axes.scatter(values, steps, s=11, color=fig.INK, edgecolor="white", linewidth=0.4, zorder=3)


def _published(profile: Profile, rows: Sequence[Row]) -> dict[int, float]:
    """Rates of Table 11 by the row's place; none for depths and batches, which it lacks."""
    if not is_published_model(profile.model):
        return {}
    return {
        y: published.decode_tok_s
        for y, row in enumerate(rows)
        for published in table11_rows()
        if published.is_of(row)
        if row.decode_tok_s is not None and (row.workload.depth, row.workload.batch) == (0, 1)
    }


def _throughput_caption(
    rows: Sequence[Row], rates: Sequence[Spread], limit: float, marked: bool
) -> list[str]:
    if not rates:
        return ["No row has a figure; the reasons are in the plot."]
    tests = {str(row.workload) for row in rows}
    sentences = [f"{rows[0].workload}."] if len(tests) == 1 else []
    n = counts(rate.n for rate in rates)
    sentences.append(f"Bar: median of n = {n} trials (dots, top to bottom in time).")
    sentences.append(f"Bracket: {spread_meaning(rates)}.")
    if any(rate.high > limit for rate in rates):
        sentences.append("A bracket that reaches the frame continues beyond it.")
    if marked:
        device = table11()["device"]["as_printed"]
        sentences.append(f"Published rates are of '{device}', with unknown prompt and length.")
    return sentences


def roofline(profile: Profile) -> fig.NamedFigure | str:
    """Bytes per token times tokens per second, with the memory's bandwidth as a line."""
    rows, others = _shown(profile)
    traffic = {y: gb_s for y, row in enumerate(rows) if (gb_s := _traffic_gb_s(row))}
    if not traffic:
        return rows[0].why_not("bandwidth_fraction") if rows else NO_ROWS
    peaks = sorted({b.gb_s for y in traffic if (b := rows[y].bandwidth(profile.device))})
    limit = 1.14 * max([*peaks, *traffic.values()])
    bars = [
        _traffic_bar(row, traffic[y], limit) if y in traffic else row.why_not("bandwidth_fraction")
        for y, row in enumerate(rows)
    ]
    with fig.style():
        figure, axes = _row_bars(rows, bars, limit, "read while decoding (GB/s)")
        for peak in peaks:
            axes.axvline(peak, color=fig.INK, linewidth=1.4, linestyle="--", zorder=3)
        names = ", ".join(f"{peak:g}" for peak in peaks) or "unknown"
        line = Line2D([], [], color=fig.INK, linestyle="--", label=f"peak, {names} GB/s")
        handles = fig.engine_handles(
            [row.engine for row in rows], line, *_handles(bars, False, False)
        )
        caption = _roofline_caption(profile, rows, bars) + others
        return fig.finish(figure, "roofline", "Roofline", profile, handles, *caption)


def _traffic_gb_s(row: Row) -> float | None:
    if row.decode_tok_s is None or not row.bytes_per_token or not row.bandwidth_fraction:
        return None
    return row.decode_tok_s.median * row.bytes_per_token / 1e9


def _traffic_bar(row: Row, gb_s: float, limit: float) -> Bar:
    reached = row.bandwidth_fraction or 0.0
    text = f"{number(gb_s)} GB/s, {reached:.0%}"
    hatch = ERROR if reached > 1 else None if row.counts else INVALID
    if hatch is not None:
        text = f"error: {text} of the peak" if hatch is ERROR else f"{text}  INVALID"
    # Inside a long bar: the line of the peak must not cross the text.
    return Bar(gb_s, text, gb_s, hatch, inside=0.45 * limit)


def _roofline_caption(
    profile: Profile, rows: Sequence[Row], bars: Sequence[Bar | str]
) -> list[str]:
    device = profile.device
    bandwidth = device.gpu_memory_bandwidth or device.memory_bandwidth
    source = plain(bandwidth.source, 90) if bandwidth else "not recorded"
    n = counts(row.decode_tok_s.n for row in rows if row.decode_tok_s)
    sentences = [
        "Bytes that one token reads (weights, which a batch shares, and the cache at the middle of "
        f"the window) times the median decode rate of n = {n} trials.",
        f"Source of the peak: {source}.",
    ]
    if any(isinstance(bar, Bar) and bar.hatch is ERROR for bar in bars):
        sentences.append("A rate above the peak is impossible: measurement or bandwidth is wrong.")
    return sentences


def _row_bars(
    rows: Sequence[Row], bars: Sequence[Bar | str], limit: float, x_label: str
) -> tuple[Figure, Axes]:
    """Axes with a bar per row, or the reason why there is none."""
    figure = fig.new_figure(0.8 + 0.4 * len(rows))
    axes = figure.add_subplot()
    for y, (row, bar) in enumerate(zip(rows, bars, strict=True)):
        if isinstance(bar, Bar):
            _draw_bar(axes, y, row, bar)
        else:
            text = plain(f"not measured: {bar}", REASON_CHARACTERS + 14)
            note = axes.text(
                limit * 0.005, y, text, va="center", fontsize=7.5, color=fig.INK, zorder=4
            )
            note.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    with_test = has_tests(rows)
    axes.set_yticks(range(len(rows)), [_folded(row_label(row, with_test)) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, limit)
    axes.set_xlabel(x_label)
    if not any(isinstance(bar, Bar) for bar in bars):
        axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    for y, (above, below) in enumerate(pairwise(rows)):
        if above.workload != below.workload:
            axes.axhline(y + 0.5, color=fig.DARK_GREY, linewidth=0.6, linestyle=":")
    return figure, axes


def _draw_bar(axes: Axes, y: int, row: Row, bar: Bar) -> None:
    look: dict[str, Any] = {"color": fig.colour_of(row.engine), "edgecolor": "none"}
    if bar.hatch:
        look = {"color": "white", "edgecolor": fig.ERROR, "hatch": "////"}
    axes.barh(y, bar.length, height=0.64, **look)
    is_inside = bar.end > bar.inside
    axes.annotate(
        bar.text,
        (bar.end, y),
        xytext=(-6 if is_inside else 6, 0),
        textcoords="offset points",
        ha="right" if is_inside else "left",
        va="center",
        color=fig.ERROR if bar.hatch is ERROR else fig.INK,
        fontweight="bold" if bar.hatch is ERROR else "normal",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        annotation_clip=False,
        zorder=4,
    )


def _folded(label: str) -> str:
    lines = textwrap.wrap(label, LABEL_CHARACTERS)
    return "\n".join(lines[:2] if len(lines) < 3 else [lines[0], f"{lines[1][:-1]}…"])


def _handles(bars: Sequence[Bar | str], has_trials: bool, has_marks: bool) -> list[Any]:
    dots: dict[str, Any] = {"marker": "o", "markersize": 3.5, "label": "a trial"}
    marks: dict[str, Any] = {"marker": "|", "markersize": 11, "mew": 2}
    marks["label"] = f"published (Table {table11()['source']['table']})"
    shown = [look for look, wanted in ((dots, has_trials), (marks, has_marks)) if wanted]
    handles: list[Any] = [Line2D([], [], ls="", color=fig.INK, **look) for look in shown]
    hatches = dict.fromkeys(bar.hatch for bar in bars if isinstance(bar, Bar) and bar.hatch)
    look: dict[str, Any] = {"facecolor": "white", "edgecolor": fig.ERROR, "hatch": "////"}
    return handles + [Patch(**look, label=label) for label in hatches]

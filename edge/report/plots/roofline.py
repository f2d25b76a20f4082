"""Memory traffic of decoding against what the device's memory can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from edge.report.figure import (
    ERROR,
    INK,
    bar_look,
    engine_handles,
    new_figure,
    plain,
    style,
    wrong_handle,
)
from edge.report.frame import NamedFigure, finish
from edge.report.plots.grid import folded, part_workloads
from edge.report.plots.view import RowView, side_by_side, view
from edge.report.table import format_rate
from edge.report.values import number

TITLE = "Roofline"
REASON_CHARACTERS = 78
# A row's share and its median may have been rounded apart by so much.
SAME = 0.02


@dataclass(frozen=True)
class _Traffic:
    """What a row reads, in GB/s; its share of the peak, above 1 where something is wrong."""

    gb_s: float
    share: float


def missing(profile: Mapping[str, Any]) -> str | None:
    """Why there is no such plot."""
    rows = view(profile)
    if any(_traffic(row) for row in rows):
        return None
    whys = dict.fromkeys(row.why_not("bandwidth_fraction") for row in rows)
    return f"{TITLE}: {next(iter(whys), 'the profile has no rows')}."


def draw(profile: Mapping[str, Any]) -> NamedFigure | None:
    """Bytes per token times tokens per second, with the peak as a line."""
    if missing(profile):
        return None
    rows = side_by_side(view(profile))
    traffic = [_traffic(row) for row in rows]
    peaks = _peaks(profile, [t for t in traffic if t])
    limit = 1.14 * max([*peaks, *(t.gb_s for t in traffic if t)])
    with style():
        figure = new_figure("roofline", 0.8 + 0.4 * len(rows))
        axes = figure.add_subplot()
        for y, (row, found) in enumerate(zip(rows, traffic, strict=True)):
            _draw_row(axes, y, row, found, limit)
        for peak in peaks:
            axes.axvline(peak, color=INK, linewidth=1.4, linestyle="--", zorder=3)
        _dress(axes, rows, limit)
        handles = engine_handles([row.engine for row in rows], *_handles(peaks, rows, traffic))
        return finish(figure, TITLE, _caption(profile, rows, traffic), profile, handles)


def _traffic(row: RowView) -> _Traffic | None:
    rate, bytes_per_token = row.spread("decode_tok_s"), row.number("bytes_per_token")
    share = number(row.data.get("bandwidth_fraction"))
    if rate is None or not bytes_per_token or not share or share < 0:
        return None
    return _Traffic(rate.median * bytes_per_token / 1e9, share)


def _peaks(profile: Mapping[str, Any], traffic: Sequence[_Traffic]) -> list[float]:
    """The bandwidths that shares are of: the device's own, as exact as it was written."""
    keys = ("memory_bandwidth", "gpu_memory_bandwidth")
    found = (profile["device"].get(key) for key in keys)
    own = [gb_s for b in found if isinstance(b, Mapping) and (gb_s := number(b.get("gb_s")))]
    peaks = set()
    for row in traffic:
        implied = row.gb_s / row.share
        near = [gb_s for gb_s in own if abs(implied / gb_s - 1) < SAME]
        peaks.add(near[0] if near else round(implied, 1))
    return sorted(peaks)


def _draw_row(axes: Axes, y: int, row: RowView, found: _Traffic | None, limit: float) -> None:
    if found is None:
        why = plain(row.why_not("bandwidth_fraction", "decode_tok_s"), REASON_CHARACTERS)
        text = f"not measured: {why}"
        note = axes.text(limit * 0.005, y, text, va="center", fontsize=7.5, color=INK, zorder=4)
        note.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
        return
    wrong = found.share > 1
    axes.barh(y, found.gb_s, height=0.64, **bar_look(row.engine, wrong or not row.counts))
    text = f"{format_rate(found.gb_s)} GB/s, {found.share:.0%}"
    text = f"error: {text} of the peak" if wrong else text if row.counts else f"{text}  INVALID"
    # Inside the bar where it is long, so that the line of the peak does not cross the text.
    inside = found.gb_s > 0.45 * limit
    axes.annotate(
        text,
        (found.gb_s, y),
        xytext=(-6 if inside else 6, 0),
        textcoords="offset points",
        ha="right" if inside else "left",
        va="center",
        color=ERROR if wrong else INK,
        fontweight="bold" if wrong else "normal",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        zorder=4,
    )


def _dress(axes: Axes, rows: Sequence[RowView], limit: float) -> None:
    axes.set_yticks(range(len(rows)), [folded(row.label) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, limit)
    axes.set_xlabel("read while decoding (GB/s)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    part_workloads(axes, rows)


def _handles(
    peaks: Sequence[float], rows: Sequence[RowView], traffic: Sequence[_Traffic | None]
) -> list[Any]:
    names = ", ".join(f"{peak:g}" for peak in peaks[:3])
    handles: list[Any] = [
        Line2D([], [], color=INK, linewidth=1.4, linestyle="--", label=f"peak, {names} GB/s")
    ]
    if any(found and found.share > 1 for found in traffic):
        handles.append(wrong_handle("above the peak: an error"))
    elif any(found and not row.counts for row, found in zip(rows, traffic, strict=True)):
        handles.append(wrong_handle("INVALID: no figure to quote"))
    return handles


def _caption(
    profile: Mapping[str, Any], rows: Sequence[RowView], traffic: Sequence[_Traffic | None]
) -> str:
    device = profile["device"]
    found = device.get("gpu_memory_bandwidth") or device.get("memory_bandwidth")
    source = plain(found.get("source"), 90) if isinstance(found, Mapping) else "not recorded"
    counts = sorted({rate.n for row in rows if (rate := row.spread("decode_tok_s"))})
    text = (
        f"Bytes that one token reads (weights, and the cache at the middle of the window) times "
        f"the median decode rate of n = {' or '.join(map(str, counts))} trials. "
        f"Source of the peak: {source}."
    )
    if any(t and t.share > 1 for t in traffic):
        text += " More than the peak cannot be read: the measurement or the bandwidth is wrong."
    return text

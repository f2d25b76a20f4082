"""Decode throughput of every row: bars from zero, every trial a dot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from edge.profile.published import is_published_model, table11, table11_rows
from edge.report.figure import (
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
from edge.report.plots.view import RowView, Spread, side_by_side, view
from edge.report.table import format_rate
from edge.report.values import number

TITLE = "Decode throughput"
# An interval over two wild processes reaches the moon; the bars are what is to be seen.
MOST_OF_AXIS = 1.6
REASON_CHARACTERS = 78


def missing(profile: Mapping[str, Any]) -> str | None:
    """Why there is no such plot: only a profile without rows has none."""
    return None if view(profile) else f"{TITLE}: the profile has no rows."


def draw(profile: Mapping[str, Any]) -> NamedFigure | None:
    """Every row has its line; one without a figure says why."""
    if missing(profile):
        return None
    rows = side_by_side(view(profile))
    published = _published(profile)
    with style():
        figure = new_figure("throughput", 0.8 + 0.4 * len(rows))
        axes = figure.add_subplot()
        limit = _limit(rows, published)
        for y, row in enumerate(rows):
            _draw_row(axes, y, row, limit)
        marked = _draw_published(axes, rows, published)
        _dress(axes, rows, limit)
        handles = engine_handles([row.engine for row in rows], *_other_handles(rows, marked))
        return finish(figure, TITLE, _caption(rows, marked, limit), profile, handles)


def _draw_row(axes: Axes, y: int, row: RowView, limit: float) -> None:
    rate = row.spread("decode_tok_s")
    if rate is None:
        why = plain(row.why_not("decode_tok_s"), REASON_CHARACTERS)
        axes.text(limit * 0.005, y, f"not measured: {why}", va="center", fontsize=7.5, color=INK)
        return
    axes.barh(y, rate.median, height=0.64, **bar_look(row.engine, not row.counts))
    if rate.kind is not None:
        low, high = _shown(rate)
        axes.errorbar(
            rate.median, y, xerr=[[rate.median - low], [high - rate.median]], color=INK, capsize=3
        )
    values = _trial_rates(row)
    # From top to bottom in the order of time, so that a drift shows as a slant.
    steps = [y - 0.2 + 0.4 * (i + 0.5) / len(values) for i in range(len(values))]
    axes.scatter(values, steps, s=11, color=INK, edgecolor="white", linewidth=0.4, zorder=3)
    end = min(max(_shown(rate)[1], *values, rate.median), limit)
    flag = "" if row.verdict == "VALID" else f"  {plain(row.verdict, 12)}"
    axes.annotate(
        f"{format_rate(rate.median)}{flag}",
        (end, y),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
    )


def _dress(axes: Axes, rows: Sequence[RowView], limit: float) -> None:
    axes.set_yticks(range(len(rows)), [folded(row.label) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, limit)
    axes.set_xlabel("decode throughput (tok/s)")
    if not any(row.spread("decode_tok_s") for row in rows):
        axes.set_xticks([])  # a scale without a figure would suggest one
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    part_workloads(axes, rows)


def _limit(rows: Sequence[RowView], published: Mapping[tuple[str, str], float]) -> float:
    """The right end of the axis: every trial and published rate, intervals within reason."""
    rates = [(row, rate) for row in rows if (rate := row.spread("decode_tok_s"))]
    values = [v for row, rate in rates for v in (rate.median, *_trial_rates(row))]
    values += [theirs for row in rows if (theirs := _theirs(row, published))]
    most = max(values, default=1.0) or 1.0
    highs = [rate.high for _, rate in rates]
    return 1.14 * max([most, *(min(high, MOST_OF_AXIS * most) for high in highs)])


def _shown(rate: Spread) -> tuple[float, float]:
    """A rate below 0 is none; the mean's interval may lie beside the median."""
    return max(min(rate.low, rate.median), 0.0), max(rate.high, rate.median)


def _trial_rates(row: RowView) -> list[float]:
    found = (number(trial.get("decode_tok_s")) for trial in row.counted_trials())
    return [rate for rate in found if rate is not None]


def _theirs(row: RowView, published: Mapping[tuple[str, str], float]) -> float | None:
    """The published rate to mark on a row: nobody published one at depth."""
    return None if row.depth else published.get((row.artefact, row.engine))


def _published(profile: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Table 11's rates by artefact and engine; none for any other model."""
    if not is_published_model(profile["model"]):
        return {}
    engines = {"MLX": "mlx", "GGUF": "llama.cpp"}
    return {(r.artefact, engines[r.framework]): r.decode_tok_s for r in table11_rows()}


def _draw_published(
    axes: Axes, rows: Sequence[RowView], published: Mapping[tuple[str, str], float]
) -> bool:
    """A mark across the row; whether there was one."""
    marks = [
        (y, theirs)
        for y, row in enumerate(rows)
        if (theirs := _theirs(row, published)) and row.spread("decode_tok_s")
    ]
    for y, rate in marks:
        axes.plot([rate, rate], [y - 0.42, y + 0.42], color="white", linewidth=4, zorder=4)
        axes.plot([rate, rate], [y - 0.42, y + 0.42], color=INK, linewidth=2, zorder=5)
    return bool(marks)


def _other_handles(rows: Sequence[RowView], marked: bool) -> list[Any]:
    handles: list[Any] = []
    if any(_trial_rates(row) for row in rows):
        handles.append(
            Line2D([], [], marker="o", ls="", color=INK, markersize=3.5, label="a trial")
        )
    if marked:
        label = f"published (Table {table11()['source']['table']})"
        handles.append(
            Line2D([], [], marker="|", ls="", color=INK, markersize=11, mew=2, label=label)
        )
    if any(not row.counts and row.spread("decode_tok_s") for row in rows):
        handles.append(wrong_handle("INVALID: no figure to quote"))
    return handles


def _caption(rows: Sequence[RowView], marked: bool, limit: float) -> str:
    rates = [rate for row in rows if (rate := row.spread("decode_tok_s"))]
    if not rates:
        return "No row has a figure; each says why."
    counts = " or ".join(map(str, sorted({rate.n for rate in rates})))
    workloads = {row.workload for row in rows}
    text = f"{'' if len(workloads) > 1 else f'{rows[0].workload}. '}Bar: median of n = {counts} "
    text += "trials (dots, top to bottom in time)."
    names = {"ci95": "95 % interval of the mean over processes", "sd": "± 1 standard deviation"}
    kinds = [names[kind] for kind in names if any(rate.kind == kind for rate in rates)]
    text += f" Bracket: {' or, without one, '.join(kinds)}." if kinds else " No spread: one trial."
    if any(rate.high > limit for rate in rates):
        text += " A bracket that reaches the frame goes on beyond it."
    if marked:
        device = table11()["device"]["as_printed"]
        text += f" Published rates are of an '{device}', their prompt and length are not known."
    return text

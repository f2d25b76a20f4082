"""The comparison as tables: for Markdown here, for whoever draws them elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from edge.report.devices.columns import GROUP
from edge.report.table import NOT_MEASURED

if TYPE_CHECKING:
    from edge.report.devices.comparison import DeviceComparison
    from edge.report.devices.records import LeftOut

Row = dict[str, Any]
# What a host of Markdown would act on. An underscore inside of a word is none of it.
MARKUP = re.compile(r"[\\`*\[\]<>|~&]")
# Engines that a framework's name stands for.
OWN_ENGINES = {"MLX": "mlx", "GGUF": "llama.cpp"}
# Files named per reason before the rest is only counted; the JSON document names all.
NAMED = 10
# A wider table cannot be read; the one with a line per precision always can.
MOST_COLUMNS = 12
COLUMNS = (
    "Device",
    "Precision",
    "Decode (tok/s)",
    "Prefill (tok/s)",
    "Roofline",
    "tok/s per GB/s",
    "tok/J",
    "Peak memory (MB)",
    "Verdict",
    "Measured",
    "Runs",
)


@dataclass(frozen=True)
class Table:
    """Plain text cells, to be escaped by whoever shows them.

    The first `text_columns` hold words, the others figures. `remarks` are sentences under it.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    text_columns: int
    remarks: list[str]


def devices_table(comparison: DeviceComparison) -> list[Table]:
    """A table per model, workload and method: what may be compared stands in one.

    Where a model was measured on several devices and in several precisions, their decode rates
    stand before it, a line per device and a column per precision.
    """
    tables = []
    for _, found in groupby(comparison.rows, key=lambda row: tuple(row[key] for key in GROUP)):
        rows = list(found)
        number = comparison.methods.index(rows[0]["method"])
        title = f"{rows[0]['model']}, {rows[0]['workload'] or 'no tokens'}"
        if number:
            title += f", method {number + 1}"
        tables += [*_matrix(title, rows), _detail(title, rows)]
    return tables


def markdown(comparison: DeviceComparison) -> str:
    """Everything, as Markdown that shows names as text whatever is in them."""
    parts = [_opening(comparison)]
    parts += [_markdown_table(table) for table in devices_table(comparison)]
    parts += _methods(comparison.methods)
    parts += _left_out(comparison.left_out)
    return "\n\n".join(parts)


def _matrix(title: str, rows: Sequence[Row]) -> list[Table]:
    """Decode rates, devices by precisions; none where the other table says as much."""
    names = _precisions(rows)
    columns = sorted(set(names))
    devices = list(dict.fromkeys(row["device"] for row in rows))
    if len(devices) < 2 or not 2 <= len(columns) <= MOST_COLUMNS:
        return []
    cells = {
        (row["device"], name): _figure(row["decode_tok_s"])
        for row, name in zip(rows, names, strict=True)
    }
    lines = [[device, *(cells.get((device, c), "") for c in columns)] for device in devices]
    remarks = (
        ["An empty cell: nobody has measured it."] if any("" in line for line in lines) else []
    )
    return [Table(f"{title}: decode (tok/s)", ["Device", *columns], lines, 1, remarks)]


def _detail(title: str, rows: Sequence[Row]) -> Table:
    lines = [
        [
            row["device"],
            name,
            _figure(row["decode_tok_s"]),
            _figure(row["prefill_tok_s"]),
            _share(row["bandwidth_fraction"]),
            _figure(row["decode_per_gb_s"]),
            _figure(row["tok_per_joule"]),
            _figure(row["peak_memory_bytes"], 1e-6),
            row["verdict"],
            row["created_utc"][:10],
            _runs(row),
        ]
        for row, name in zip(rows, _precisions(rows), strict=True)
    ]
    return Table(title, list(COLUMNS), lines, 2, _meters(rows))


def _precisions(rows: Sequence[Row]) -> list[str]:
    """A name for every row's precision that is its own on its device."""
    names = [_precision(row) for row in rows]
    seen: dict[str, set[str]] = {}
    for name, row in zip(names, rows, strict=True):
        seen.setdefault(name, set()).add(f"{row['artefact']}, {row['runs_on']}".strip(", "))
    return [
        name
        if len(seen[name]) == 1
        else f"{name} ({row['artefact']}, {row['runs_on']})".replace(", )", ")")
        for name, row in zip(names, rows, strict=True)
    ]


def _precision(row: Row) -> str:
    name = f"{row['framework']} {row['precision']}"
    own = OWN_ENGINES.get(row["framework"]) == row["engine"]
    return name if own else f"{name} on {row['engine']}"


def _meters(rows: Sequence[Row]) -> list[str]:
    measured = [row["meter"] or "a meter that is not named" for row in rows if row["tok_per_joule"]]
    meters = list(dict.fromkeys(measured))
    if not meters:
        return []
    if len(meters) == 1:
        return [f"Energy by {meters[0]}."]
    several = "; ".join(meters[:NAMED])
    return [f"Energy by several meters ({several}): compare tok/J only where they are the same."]


def _runs(row: Row) -> str:
    """How many measurements there are, and where they lie."""
    low, high = row["lowest_tok_s"], row["highest_tok_s"]
    if row["runs"] == 1 or low is None:
        return str(row["runs"])
    return f"{row['runs']} ({_figure(low)} to {_figure(high)})"


def _figure(value: float | None, scale: float = 1.0) -> str:
    """Three significant figures, or all before the point."""
    if value is None:
        return NOT_MEASURED
    value *= scale
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _share(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.0%}"


def _opening(comparison: DeviceComparison) -> str:
    devices = len({row["device"] for row in comparison.rows})
    parts = [f"# {_count(devices, 'device')} compared"]
    filters = [("chip", comparison.chip), ("model", comparison.model)]
    wanted = ", ".join(f'{name} "{_escaped(text)}"' for name, text in filters if text)
    line = f"{_count(comparison.profiles, 'profile')} of {_count(comparison.files, 'file')}"
    if wanted:
        line += f"; {_count(comparison.filtered_out, 'other')} did not match {wanted}"
    parts.append(f"{line}. Figures are medians over a run's trials.")
    if not comparison.rows:
        parts.append("Nothing is left to compare.")
    return "\n\n".join(parts)


def _methods(methods: Sequence[str]) -> list[str]:
    """What rates mean, where they do not mean the same."""
    if len(methods) < 2:
        return []
    lines = [f"{i}. {_escaped(method)}" for i, method in enumerate(methods, 1)]
    why = "Rates of different methods are different things, so that they stand in tables apart."
    return ["## Methods", why, "\n".join(lines)]


def _left_out(left_out: Sequence[LeftOut]) -> list[str]:
    if not left_out:
        return []
    by_kind: dict[str, list[LeftOut]] = {}
    for entry in left_out:
        by_kind.setdefault(entry.kind, []).append(entry)
    lines = []
    for kind, entries in by_kind.items():
        lines.append(f"- {kind} ({len(entries)})")
        lines += [f"  - {_escaped(e.file)}: {_escaped(e.reason)}" for e in entries[:NAMED]]
        if len(entries) > NAMED:
            lines.append(f"  - and {len(entries) - NAMED} more: `-o json` names all")
    return ["## Left out", "\n".join(lines)]


def _markdown_table(table: Table) -> str:
    lines = [[_escaped(cell) for cell in line] for line in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = [
        "-" * width if i < table.text_columns else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    body = [_line(line, widths, table.text_columns) for line in lines]
    drawn = "\n".join([body[0], _line(rule, widths, 0), *body[1:]])
    return "\n\n".join([f"## {_escaped(table.title)}", drawn, *map(_escaped, table.remarks)])


def _line(cells: Sequence[str], widths: Sequence[int], text_columns: int) -> str:
    padded = [
        cell.ljust(width) if i < text_columns else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


def _escaped(text: str) -> str:
    return MARKUP.sub(r"\\\g<0>", text)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

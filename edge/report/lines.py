"""A profile's rows as the cells of a table: Table 11's columns first, each with its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.report.table import (
    COLUMNS,
    NOT_MEASURED,
    OPTIONAL,
    TEXT_COLUMNS,
    format_rate,
    with_peer,
    workload_name,
)

# Words sort and align as words; everything else is a number.
WORDS = {*COLUMNS[:TEXT_COLUMNS], "Test", "Verdict"}


@dataclass(frozen=True)
class Cell:
    """What is shown; and for a number what it is sorted by, None where nothing was measured."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Head and lines, all equally long; `numeric` says which columns hold numbers."""

    head: tuple[str, ...]
    numeric: tuple[bool, ...]
    lines: tuple[tuple[Cell, ...], ...]


def table_of(profile: Mapping[str, Any]) -> Table:
    """The table of a tidy profile, without the columns that say nothing.

    Args:
        profile: of `tidy`.
    """
    rows = profile["rows"]
    kept = [name for name in COLUMNS if name not in OPTIONAL or OPTIONAL[name](rows)]
    lines = (_cells(row, profile) for row in rows)
    return Table(
        head=tuple(kept),
        numeric=tuple(name not in WORDS for name in kept),
        lines=tuple(tuple(cells[name] for name in kept) for cells in lines),
    )


def markdown_of(
    head: Sequence[str], numeric: Sequence[bool], lines: Sequence[Sequence[str]]
) -> str:
    """An aligned Markdown table of texts that are already escaped."""
    widths = [max(3, *(len(line[i]) for line in (head, *lines))) for i in range(len(head))]
    rule = [
        "-" * (width - 1) + ":" if is_number else "-" * width
        for width, is_number in zip(widths, numeric, strict=True)
    ]
    return "\n".join(_line(cells, widths, numeric) for cells in (head, rule, *lines))


def quantity_cell(quantity: Mapping[str, Any] | None, scale: float = 1.0) -> Cell:
    """Median ± standard deviation."""
    if quantity is None:
        return Cell(NOT_MEASURED)
    median = quantity["median"] * scale
    text = format_rate(median)
    if quantity["sd"] is not None:
        digits = len(text.partition(".")[2])
        text += f" ± {quantity['sd'] * scale:.{digits}f}"
    return Cell(text, median)


def number_cell(value: float | None, pattern: str, scale: float = 1.0) -> Cell:
    """A plain number."""
    return Cell(NOT_MEASURED) if value is None else Cell(pattern.format(value * scale), value)


def _cells(row: Mapping[str, Any], profile: Mapping[str, Any]) -> dict[str, Cell]:
    texts = (with_peer(row["framework"], row["engine"]), profile["device"]["name"])
    quality = row["quality"] or {}
    cells = (
        *map(Cell, (*texts, row["precision"])),
        quantity_cell(row["decode_tok_s"]),
        quantity_cell(row["power_w"]),
        quantity_cell(row["joules_per_token"]),
        quantity_cell(row["joules_per_token_net"]),
        Cell(workload_name(row["workload"])),
        quantity_cell(row["prefill_tok_s"]),
        quantity_cell(row["ttft_s"], 1000),
        number_cell(row["peak_memory_bytes"], "{:.0f}", 1e-6),
        number_cell(row["bits_per_weight"], "{:.2f}", 1 / 8),
        number_cell(row["bandwidth_fraction"], "{:.0%}"),
        number_cell(quality.get("kl_mean"), "{:.2g}"),
        number_cell(quality.get("perplexity_ratio"), "{:.4f}"),
        number_cell(quality.get("top1_agreement"), "{:.1%}"),
        Cell(row["verdict"]),
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = [
        cell.rjust(width) if is_number else cell.ljust(width)
        for cell, width, is_number in zip(cells, widths, numeric, strict=True)
    ]
    return f"| {' | '.join(padded)} |"

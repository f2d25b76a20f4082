"""The table: Table 11's columns first, then what it left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOT_MEASURED = "—"
COLUMNS = (
    "Framework",
    "Device",
    "Precision",
    "Throughput (Tok/s)",
    "Power (W)",
    "Prefill (Tok/s)",
    "TTFT (ms)",
    "Peak memory (MB)",
    "Bytes/weight",
    "Verdict",
)
TEXT_COLUMNS = 3


def markdown_table(profile: Mapping[str, Any]) -> str:
    """The profile's rows as an aligned Markdown table, medians ± standard deviation."""
    cells = [list(COLUMNS), *(_cells(row, profile) for row in profile["rows"])]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    rule = [
        "-" * width if i < TEXT_COLUMNS else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    return "\n".join(_line(line, widths) for line in (cells[0], rule, *cells[1:]))


def notes(profile: Mapping[str, Any]) -> list[str]:
    """What the table leaves open: each distinct reason once, with the rows it is about."""
    rows = profile["rows"]
    about: dict[str, list[str]] = {}
    for row in rows:
        for reason in row["reasons"]:
            about.setdefault(reason, []).append(row_label(row))
    return [
        reason if len(names) == len(rows) else f"{', '.join(names)}: {reason}"
        for reason, names in about.items()
    ]


def row_label(row: Mapping[str, Any]) -> str:
    """A row's short name; the peer's carries its engine."""
    suffix = f" ({row['engine']})" if row["engine"] == "mlx-lm" else ""
    return f"{row['artefact']}{suffix}"


def _cells(row: Mapping[str, Any], profile: Mapping[str, Any]) -> list[str]:
    peak = row["peak_memory_bytes"]
    framework = "MLX (mlx-lm)" if row["engine"] == "mlx-lm" else row["framework"]
    return [
        framework,
        profile["device"]["name"],
        row["precision"],
        _quantity(row["decode_tok_s"]),
        _quantity(row["power_w"]),
        _quantity(row["prefill_tok_s"]),
        _quantity(row["ttft_s"], scale=1000),
        NOT_MEASURED if peak is None else f"{peak / 1e6:.0f}",
        f"{row['bits_per_weight'] / 8:.2f}",
        row["verdict"],
    ]


def _quantity(quantity: Mapping[str, Any] | None, scale: float = 1.0) -> str:
    if quantity is None:
        return NOT_MEASURED
    median = quantity["median"] * scale
    if quantity["sd"] is None:
        return format_rate(median)
    return f"{format_rate(median)} ± {quantity['sd'] * scale:.{_digits(median)}f}"


def format_rate(value: float) -> str:
    """Three significant figures or all before the point."""
    return f"{value:.{_digits(value)}f}"


def _digits(value: float) -> int:
    return 0 if value >= 1000 else 1 if value >= 10 else 2


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if i < TEXT_COLUMNS else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"

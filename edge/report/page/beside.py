"""The published rows of Table 11 beside a profile of the same model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge.profile.published import PublishedRow, is_published_model, table11, table11_rows
from edge.report.lines import Cell, Table, number_cell
from edge.report.table import NOT_MEASURED, format_rate

HEAD = (
    "Framework",
    "Precision",
    "Published (Tok/s)",
    "Here (Tok/s)",
    "Here / published",
    "Published (W)",
    "Here (W)",
    "Published (J/token)",
    "Here (J/token)",
)
TEXT_COLUMNS = 2
OWN_ENGINE = {"MLX": "mlx", "GGUF": "llama.cpp"}


@dataclass(frozen=True)
class Beside:
    """The two side by side, where the published ones come from, and what limits a comparison."""

    table: Table
    source: str
    url: str
    caveats: tuple[str, ...]


def published_beside(profile: Mapping[str, Any]) -> Beside | None:
    """None where the model is another one, as its rates say nothing about the device.

    Args:
        profile: of `tidy`. Random weights at the published shape count: speed and power do not
            depend on values.
    """
    data = table11()
    if not is_published_model(profile["model"]):
        return None
    pairs = [(row, _ours(row, profile)) for row in table11_rows()]
    if not any(row for _, row in pairs):
        return None
    source, device = data["source"], data["device"]
    numeric = tuple(i >= TEXT_COLUMNS for i in range(len(HEAD)))
    return Beside(
        table=Table(HEAD, numeric, tuple(_cells(published, row) for published, row in pairs)),
        source=f"{source['report']}, {source['year']}, Table {source['table']}, "
        f"arXiv {source['arxiv']}",
        url=source["url"],
        caveats=(
            data["caveat"],
            f"The report names the device '{device['as_printed']}'. {device['remark']}",
            f"Not stated there: {', '.join(data['not_stated'])}.",
            "Its J/token are computed here as W / (tok/s).",
        ),
    )


def _ours(published: PublishedRow, profile: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Our own engine's first row of the artefact that gave a rate."""
    wanted = (published.artefact, OWN_ENGINE[published.framework])
    for row in profile["rows"]:
        counts = row["verdict"] != "INVALID" and row["decode_tok_s"] is not None
        if counts and (row["artefact"], row["engine"]) == wanted:
            found: Mapping[str, Any] = row
            return found
    return None


def _cells(published: PublishedRow, row: Mapping[str, Any] | None) -> tuple[Cell, ...]:
    rate, power, joules = (
        _median(row, name) for name in ("decode_tok_s", "power_w", "joules_per_token")
    )
    ratio = None if rate is None else rate / published.decode_tok_s
    return (
        Cell(published.framework),
        Cell(published.precision),
        number_cell(published.decode_tok_s, "{:g}"),
        _rate_cell(rate),
        number_cell(ratio, "{:.2f}"),
        number_cell(published.power_w, "{:g}"),
        _rate_cell(power),
        _rate_cell(published.joules_per_token),
        _rate_cell(joules),
    )


def _median(row: Mapping[str, Any] | None, name: str) -> float | None:
    quantity = None if row is None else row[name]
    return None if quantity is None else float(quantity["median"])


def _rate_cell(value: float | None) -> Cell:
    return Cell(NOT_MEASURED) if value is None else Cell(format_rate(value), value)

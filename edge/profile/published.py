"""Published figures beside measured ones: Table 11 of the Stable Code Technical Report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from edge.device.chips import chip_table
from edge.device.roofline import ceiling_tok_s

COLUMNS = (
    "Framework",
    "Precision",
    "Published (tok/s)",
    "Ours (tok/s)",
    "Ours / published",
    "Published (W)",
    "Ours (W)",
    "Published (J/token)",
    "Ours (J/token)",
    "Published, of M2 Pro",
    "Published, of M2 Max",
    "Ours, of this device",
)
TEXT_COLUMNS = 2
MISSING = "—"


@dataclass(frozen=True)
class PublishedRow:
    """One line of Table 11; `bytes_per_token` are the weights that a token reads, ours."""

    artefact: str
    framework: str
    precision: str
    decode_tok_s: float
    power_w: float
    bytes_per_token: int

    @property
    def joules_per_token(self) -> float:
        """W / (tok/s): computed, the report does not print it."""
        return self.power_w / self.decode_tok_s

    def share_of(self, bandwidth_gb_s: float) -> float:
        """How much of the ceiling that a memory bandwidth sets the published rate is."""
        return self.decode_tok_s / ceiling_tok_s(self.bytes_per_token, bandwidth_gb_s * 1e9)


@cache
def table11() -> dict[str, Any]:
    """The whole file: rows, source, caveat, what the report leaves open."""
    return _read("table11.json")


@cache
def other_figures() -> dict[str, Any]:
    """Rates of other models, with their sources."""
    return _read("apple_silicon.json")


def table11_rows() -> list[PublishedRow]:
    """In the report's order."""
    return [PublishedRow(**row) for row in table11()["rows"]]


def is_published_model(model: Mapping[str, Any]) -> bool:
    """Whether a profile's model is the one of Table 11, or random weights of its shape.

    By its name as well: stablelm-3b-4e1t has as many parameters.
    """
    theirs = table11()["model"]
    same_name = theirs["name"] in str(model.get("name"))
    return same_name and model.get("parameters") == theirs["parameters"]


def table11_beside(profile: Mapping[str, Any]) -> str:
    """Table 11 in Markdown with a profile's figures beside it, and what limits the comparison.

    Args:
        profile: plain data, as in its file. Rows of peers do not count; of several workloads
            the first has its row.
    """
    pairs = [(published, _measured(published, profile)) for published in table11_rows()]
    lines = [list(COLUMNS), *(_cells(published, row) for published, row in pairs)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    rule = [
        "-" * width if i < TEXT_COLUMNS else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    head, *body = lines
    table = [_line(cells, widths) for cells in (head, rule, *body)]
    rows = [row for _, row in pairs if row is not None]
    return "\n".join([*table, "", *(f"- {note}" for note in _notes(profile, rows))])


def _read(name: str) -> dict[str, Any]:
    text = (resources.files("edge") / "data" / name).read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def _measured(published: PublishedRow, profile: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Our own row of the artefact that gave figures; None if there is none."""
    own = {"MLX": "mlx", "GGUF": "llama.cpp"}[published.framework]
    rows: list[Mapping[str, Any]] = profile["rows"]
    found = (
        row
        for row in rows
        if (row["artefact"], row["engine"]) == (published.artefact, own)
        and row["verdict"] != "INVALID"
        and row.get("decode_tok_s")
    )
    return next(found, None)


def _cells(published: PublishedRow, row: Mapping[str, Any] | None) -> list[str]:
    row = row or {}
    rate = _median(row, "decode_tok_s")
    share = row.get("bandwidth_fraction")
    return [
        published.framework,
        published.precision,
        f"{published.decode_tok_s:g}",
        _number(rate),
        MISSING if rate is None else f"{rate / published.decode_tok_s:.2f}",
        f"{published.power_w:g}",
        _number(_median(row, "power_w")),
        _number(published.joules_per_token),
        _number(_median(row, "joules_per_token")),
        *(f"{published.share_of(_bandwidth_gb_s(chip)):.0%}" for chip in _candidates()),
        MISSING if share is None else f"{share:.0%}",
    ]


def _notes(profile: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> Iterable[str]:
    data = table11()
    source, device = data["source"], data["device"]
    yield (
        f"Published: {source['report']}, arXiv {source['arxiv']} ({source['year']}), Table "
        f"{source['table']}, on '{device['as_printed']}'. {data['caveat']}"
    )
    yield f"Not stated there: {', '.join(data['not_stated'])}."
    bandwidths = ", ".join(f"{chip} {_bandwidth_gb_s(chip):g} GB/s" for chip in _candidates())
    yield f"{device['remark']} Shares are of {bandwidths}."
    yield "J/token of the published rows is computed: W / (tok/s)."
    model = profile["model"]
    yield f"Ours: {model['name']} on {profile['device']['name']}{_workload(rows)}."
    meters = dict.fromkeys(
        f"{p['source']} ({p['boundary']})" for r in rows if (p := r.get("power"))
    )
    if meters:
        yield f"Our watts are of {' and '.join(meters)}."
    if not is_published_model(model):
        ours, theirs = model["parameters"], data["model"]
        yield (
            f"{model['name']} has {ours / 1e6:.0f} M weights and the published model, "
            f"{theirs['name']}, {theirs['parameters'] / 1e6:.0f} M: the ratios say nothing about "
            f"the devices."
        )
    if model["synthetic"]:
        yield "Our weights are random: speed and power do not depend on their values."
    absent = [row.precision for row in table11_rows() if _measured(row, profile) is None]
    if absent:
        yield f"Without a figure of ours: {', '.join(absent)} (not measured, or INVALID)."


def _workload(rows: list[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    given = rows[0]["workload"]
    depth = f" @ d{given['depth']}" if given.get("depth") else ""
    return f", tg{given['generate']}{depth}, medians"


def _candidates() -> list[str]:
    """The chips that "M2 Pro Max" may mean."""
    return list(table11()["device"]["candidates"])


def _bandwidth_gb_s(chip: str) -> float:
    return next(line.bandwidth_gb_s for line in chip_table() if line.name == chip)


def _median(row: Mapping[str, Any], name: str) -> float | None:
    quantity = row.get(name)
    return None if quantity is None else float(quantity["median"])


def _number(value: float | None) -> str:
    """Three significant figures, none of them in an exponent."""
    if value is None:
        return MISSING
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _line(cells: list[str], widths: list[int]) -> str:
    padded = [
        cell.ljust(width) if i < TEXT_COLUMNS else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"

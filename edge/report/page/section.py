"""What the page says of one profile, worded here, so that the template only lays it out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.report.figure import plain, provenance
from edge.report.lines import Table, table_of
from edge.report.markdown import markdown_section, title_of
from edge.report.page.beside import Beside, published_beside
from edge.report.table import format_rate, row_label
from edge.report.tidy import QUANTITIES, VERDICTS, tidy
from edge.report.values import number

# A reason that begins with a key of the row says why that was not measured.
ABOUT_A_KEY = re.compile(
    rf"^({'|'.join(QUANTITIES)}|bandwidth_fraction|quality|peak_memory_bytes)\b"
)
Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Reasons:
    """Sentences about the same rows, which stand with their verdicts; no rows: all of them."""

    texts: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """One profile on the page."""

    number: int
    title: str
    created_utc: str
    device: Facts
    best: list[str]
    verdicts: list[tuple[str, int]]
    table: Table
    beside: Beside | None
    reasons: list[Reasons]
    missing: list[Reasons]
    plots: Sequence[Mapping[str, Any]]
    method: Facts
    software: Facts
    provenance: str
    markdown: str


def section_of(
    number_: int, profile: Mapping[str, Any], plots: Sequence[Mapping[str, Any]]
) -> Section:
    """One profile's part of the page.

    Args:
        number_: its place on the page, from 1.
        profile: plain data, as `read_for_report` gives it.
        plots: name, title, caption, svg of each.
    """
    from edge.report.plots import missing

    safe = tidy(profile)
    return Section(
        number=number_,
        title=title_of(safe),
        created_utc=safe["created_utc"],
        device=_device(safe),
        best=_best(safe),
        verdicts=_verdicts(safe),
        table=table_of(safe),
        beside=published_beside(safe),
        reasons=_reasons(safe, about_keys=False),
        missing=[
            *_reasons(safe, about_keys=True),
            *(Reasons((plain(sentence, 600),), ()) for sentence in missing(profile)),
        ],
        plots=plots,
        method=_facts(safe["method"], 600),
        software=_facts(safe["software"], 80),
        provenance=provenance(profile),
        markdown=markdown_section(profile),
    )


def _device(profile: Mapping[str, Any]) -> Facts:
    device = profile["device"]
    facts = (
        ("Chip", device["name"]),
        ("CPU cores", _cores(device)),
        ("GPU", _gpu(device)),
        ("Memory", _scaled(device.get("memory_bytes"), 2**30, "GiB")),
        ("Memory bandwidth", _bandwidth(device.get("memory_bandwidth"))),
        ("GPU memory bandwidth", _bandwidth(device.get("gpu_memory_bandwidth"))),
        ("System", device.get("os")),
        ("Model", _model(profile["model"])),
    )
    known = [(name, plain(value, 200)) for name, value in facts if value]
    remarks = device.get("remarks")
    remarks = remarks if isinstance(remarks, list) else []
    return [*known, *(("Remark", plain(remark, 400)) for remark in remarks[:10])]


def _cores(device: Mapping[str, Any]) -> str | None:
    physical, levels = number(device.get("physical_cores")), device.get("cores_by_level")
    if physical is None:
        return None
    kinds = levels.items() if isinstance(levels, Mapping) else ()
    parts = [f"{count:.0f} {plain(kind, 30)}" for kind, c in kinds if (count := number(c))]
    return f"{physical:.0f}" + (f" ({', '.join(parts[:6])})" if parts else "")


def _gpu(device: Mapping[str, Any]) -> str | None:
    name, cores = device.get("gpu_name"), number(device.get("gpu_cores"))
    counted = f"{cores:.0f} cores" if cores else None
    return ", ".join(str(part) for part in (name, counted) if part) or None


def _bandwidth(bandwidth: object) -> str | None:
    if not isinstance(bandwidth, Mapping) or (gb_s := number(bandwidth.get("gb_s"))) is None:
        return None
    return f"{gb_s:.4g} GB/s ({plain(bandwidth.get('source'), 120)})"


def _model(model: Mapping[str, Any]) -> str:
    size = _scaled(model.get("parameters"), 1e6, "M weights")
    random = "random weights" if model.get("synthetic") is True else None
    return ", ".join(part for part in (model["name"], size, random) if part)


def _scaled(value: object, unit: float, name: str) -> str | None:
    found = number(value)
    return None if found is None else f"{found / unit:.4g} {name}"


def _best(profile: Mapping[str, Any]) -> list[str]:
    """The best figure of each kind among the rows that count."""
    rows = [row for row in profile["rows"] if row["verdict"] != "INVALID"]
    kinds = (
        ("Fastest decode", "decode_tok_s", "tok/s", max),
        ("fastest prefill", "prefill_tok_s", "tok/s", max),
        ("least energy", "joules_per_token", "J/token", min),
    )
    found = []
    for title, key, unit, choose in kinds:
        candidates = [row for row in rows if row[key] is not None]
        if candidates:
            row = choose(candidates, key=lambda r: r[key]["median"])
            figure = format_rate(row[key]["median"])
            label = row_label(row, profile["rows"])
            doubt = "" if row["verdict"] == "VALID" else f", {row['verdict']}"
            found.append(f"{title} {figure} {unit} ({label}{doubt})")
    return found


def _verdicts(profile: Mapping[str, Any]) -> list[tuple[str, int]]:
    given = [row["verdict"] for row in profile["rows"]]
    return [(verdict, given.count(verdict)) for verdict in VERDICTS if verdict in given]


def _reasons(profile: Mapping[str, Any], about_keys: bool) -> list[Reasons]:
    """Each distinct sentence once, those about INVALID rows first, about all rows last.

    Args:
        profile: of `tidy`.
        about_keys: those that say why something was not measured, or all others.
    """
    rows = profile["rows"]
    about: dict[str, dict[str, str]] = {}
    for row in rows:
        for reason in row["reasons"]:
            if bool(ABOUT_A_KEY.match(reason)) == about_keys:
                about.setdefault(reason, {})[row_label(row, rows)] = row["verdict"]
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for text, labels in about.items():
        key = tuple(labels.items()) if len(labels) < len(rows) or len(rows) == 1 else ()
        groups.setdefault(key, []).append(text)
    found = [Reasons(tuple(texts), labels) for labels, texts in groups.items()]
    return sorted(found, key=lambda r: -max([VERDICTS.index(v) for _, v in r.rows], default=-1))


def _facts(data: Mapping[str, Any], most: int) -> Facts:
    """What a flat object says; nothing for nothing."""
    said = [(plain(key, 40).replace("_", " "), _said(value)) for key, value in data.items()]
    return [(key, plain(text, most)) for key, text in said[:60] if text]


def _said(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text}" for key, item in value.items() if (text := _said(item)))
    if isinstance(value, list):
        nested = any(isinstance(item, list) for item in value)
        return ("; " if nested else ", ").join(filter(None, map(_said, value)))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)

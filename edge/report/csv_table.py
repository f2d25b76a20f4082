"""The rows of profiles as CSV, one line each: every figure, unrounded, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from edge.report.figure import plain
from edge.report.quality import Quality
from edge.report.tidy import NUMBERS, QUANTITIES, tidy

QUALITY = tuple(field.name for field in fields(Quality))
PARTS = ("median", "mean", "sd", "ci95_low", "ci95_high", "n")
HEAD = (
    "created_utc",
    "device",
    "os",
    "memory_bandwidth_gb_s",
    "model",
    "parameters",
    "synthetic",
    "edge",
    "framework",
    "artefact",
    "engine",
    "precision",
    "prompt",
    "generate",
    "depth",
    *(f"{name}_{part}" for name in QUANTITIES for part in PARTS),
    *NUMBERS,
    *(f"quality_{name}" for name in QUALITY),
    "verdict",
    "reasons",
)
# A spreadsheet takes what begins so for a formula, and runs it.
FORMULA = ("=", "+", "-", "@")


def csv_table(profiles: Sequence[Mapping[str, Any]]) -> str:
    """All rows of all profiles under one head; empty where nothing was measured.

    Args:
        profiles: plain data, as `read_profile` gives it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEAD)
    for profile in map(tidy, profiles):
        about = _about(profile)
        for row in profile["rows"]:
            writer.writerow([_cell(value) for value in (*about, *_figures(row))])
    return text.getvalue()


def _about(profile: Mapping[str, Any]) -> list[Any]:
    """What all rows of a profile share."""
    device, model = profile["device"], profile["model"]
    bandwidth = device.get("memory_bandwidth")
    return [
        profile["created_utc"],
        device["name"],
        device.get("os"),
        bandwidth.get("gb_s") if isinstance(bandwidth, Mapping) else None,
        model["name"],
        model.get("parameters"),
        model.get("synthetic"),
        profile["software"].get("edge"),
    ]


def _figures(row: Mapping[str, Any]) -> list[Any]:
    quantities = [part for name in QUANTITIES for part in _parts(row[name])]
    return [
        *(row[name] for name in ("framework", "artefact", "engine", "precision")),
        *(row["workload"][name] for name in ("prompt", "generate", "depth")),
        *quantities,
        *(row[name] for name in NUMBERS),
        *((row["quality"] or {}).get(name) for name in QUALITY),
        row["verdict"],
        "; ".join(row["reasons"]),
    ]


def _parts(quantity: Mapping[str, Any] | None) -> list[Any]:
    if quantity is None:
        return [None] * len(PARTS)
    low, high = quantity["ci95"] or (None, None)
    return [quantity["median"], quantity["mean"], quantity["sd"], low, high, quantity["n"]]


def _cell(value: object) -> object:
    """Numbers as they are, text that no spreadsheet runs, nothing for nothing."""
    if value is None or isinstance(value, int | float):
        return value
    text = plain(value, 4000)
    return f"'{text}" if text.startswith(FORMULA) else text

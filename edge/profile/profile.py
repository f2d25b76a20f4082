"""The profile, schema 1: every row of one run on one device, raw trials included."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge.bench.statistics import Quantity
from edge.bench.verdict import Verdict
from edge.bench.workload import Workload
from edge.device.describe import Device
from edge.formats.files import atomic_write
from edge.profile.reading import SCHEMA

# Begins with a line break, which no JSON string holds: only real lists match.
NUMBER_LIST = re.compile(r"\[\n[\d\s,]+\]")


@dataclass(frozen=True)
class ModelInfo:
    """Which model was measured."""

    name: str
    source: str
    revision: str | None
    parameters: int
    synthetic: bool


@dataclass(frozen=True)
class Row:
    """An artefact on an engine under a workload.

    A quantity that is None has its sentence in `reasons`. Decode, prefill and time to first
    token leave out loading, tokenising, sampling and detokenising. `bytes_per_token` is what
    one decode step reads: weights, and the cache at the middle of the window.
    `joules_per_token` is gross, `joules_per_token_net` less the idle power. `peak_memory_bytes`
    is the process's or, where that is more, the device's, which `peak_device_bytes` has alone.
    `token_latency_ms` has p50, p90 and p99 over every token of every trial that counts, `power`
    the meter's name, boundary and doubts, `processes` one entry per round.
    """

    artefact: str
    engine: str
    framework: str
    precision: str
    workload: Workload
    file_bytes: int
    bits_per_weight: float
    bytes_per_token: int | None
    decode_tok_s: Quantity | None
    prefill_tok_s: Quantity | None
    ttft_s: Quantity | None
    power_w: Quantity | None
    joules_per_token: Quantity | None
    joules_per_token_net: Quantity | None
    peak_memory_bytes: int | None
    bandwidth_fraction: float | None
    quality: dict[str, float] | None
    verdict: Verdict
    reasons: list[str]
    load_s: float | None
    engine_facts: dict[str, Any] | None
    trials: list[dict[str, Any]]
    prefill_power_w: Quantity | None = None
    prefill_joules_per_token: Quantity | None = None
    peak_device_bytes: int | None = None
    token_latency_ms: dict[str, float] | None = None
    power: dict[str, Any] | None = None
    processes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Profile:
    """One run."""

    created_utc: str
    argv: list[str]
    device: Device
    software: dict[str, str]
    model: ModelInfo
    method: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, the schema's number first."""
        return {"schema": self.schema, **asdict(self)}

    def to_json(self) -> str:
        """The profile's file content, each list of stamps on one line."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        return NUMBER_LIST.sub(lambda found: "".join(found[0].split()), text) + "\n"


def write_profile(profile: Profile, path: Path) -> None:
    """Write the whole profile, replacing an older state of it.

    Raises:
        EdgeError: the folder cannot be written.
    """
    with atomic_write(path) as partial:
        partial.write_text(profile.to_json(), encoding="utf-8")

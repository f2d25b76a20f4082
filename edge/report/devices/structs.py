"""What a comparison needs of one profile, and nothing else of it.

Nine tenths of a profile are the stamps of its trials. The decoder has the wanted fields' types, so
that it passes over all others without building them, and refuses what is of the wrong kind: ten
thousand profiles are read in a tenth of the time that `json` takes, by one process.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

# Far more than any device, and less than what a column of 64 bits holds.
MOST = 10**15
# Less than any rate or bandwidth, and enough to divide by.
LEAST = 1e-9
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Above0 = Annotated[float, msgspec.Meta(ge=LEAST, le=float(MOST))]
Number = Annotated[float, msgspec.Meta(ge=-float(MOST), le=float(MOST))]
Instant = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\+00:00|Z)$")]


class Rate(msgspec.Struct):
    """A rate's centre; a rate that is not above 0 was not measured."""

    median: Above0
    n: Count


class Quantity(msgspec.Struct):
    """Any other quantity's centre."""

    median: Number
    n: Count


class Workload(msgspec.Struct):
    """As `edge.bench.workload` means it."""

    prompt: Count
    generate: Count
    depth: Count = 0
    joint: bool = False


class EngineFacts(msgspec.Struct):
    """Where the engine computed, and with which numbers."""

    device: str = ""
    compute_dtype: str | None = None
    kv_dtype: str | None = None


class Meter(msgspec.Struct):
    """Where joules came from, and what they include."""

    source: str
    boundary: str


class Row(msgspec.Struct):
    """One row's medians."""

    artefact: str
    engine: str
    framework: str
    precision: str
    workload: Workload
    verdict: str
    reasons: list[str]
    decode_tok_s: Rate | None = None
    prefill_tok_s: Rate | None = None
    power_w: Quantity | None = None
    joules_per_token: Quantity | None = None
    peak_memory_bytes: Count | None = None
    bandwidth_fraction: Number | None = None
    engine_facts: EngineFacts | None = None
    power: Meter | None = None


class Bandwidth(msgspec.Struct):
    """GB/s, and how they are known."""

    gb_s: Above0
    source: str


class Device(msgspec.Struct):
    """What tells devices apart."""

    name: str
    architecture: str = ""
    memory_bytes: Count = 0
    hw_model: str | None = None
    gpu_name: str | None = None
    gpu_cores: Count | None = None
    memory_bandwidth: Bandwidth | None = None
    gpu_memory_bandwidth: Bandwidth | None = None


class Model(msgspec.Struct):
    """What tells models apart."""

    name: str
    source: str = ""
    parameters: Count = 0
    synthetic: bool = False


class Method(msgspec.Struct):
    """What a rate means."""

    decode_rate: str = "not stated"
    excluded: list[str] = []
    finished: bool = True


class Profile(msgspec.Struct):
    """One file."""

    schema: int
    created_utc: Instant
    device: Device
    model: Model
    method: Method
    rows: list[Row]

"""What a comparison needs of one profile, and nothing else of it.

Nine tenths of a profile are the stamps of its trials. The decoder has the wanted fields' types, so
that it passes over all others without building them, and refuses what is of the wrong kind: ten
thousand profiles are read in a tenth of the time that `json` takes, by one process.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edge.profile_file import MAX_BYTES, SCHEMA

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


class _Head(msgspec.Struct):
    schema: Any = None


@dataclass(frozen=True)
class LeftOut:
    """What is not in the comparison: a file or some of its rows, and the sentence that says why.

    `kind` groups the reasons: unreadable, not a profile, newer schema, broken, duplicate, no rows,
    invalid, impossible, not measured.
    """

    file: str
    reason: str
    kind: str


@dataclass(frozen=True)
class Record:
    """A profile that could be read; `content` is a digest of its bytes."""

    file: str
    content: str
    profile: Profile


_PROFILE = msgspec.json.Decoder(Profile)
_HEAD = msgspec.json.Decoder(_Head)
_CHECK = "edge report --check says where"


def read_record(path: Path, name: str) -> Record | LeftOut:
    """Read one file; whatever is wrong with it becomes a sentence.

    Args:
        path: where it is.
        name: what to call it.
    """
    try:
        data = _bytes_of(path)
    except OSError as error:
        return LeftOut(name, f"cannot be read ({error.strerror or error})", "unreadable")
    if data is None:
        return LeftOut(name, "is no regular file, or larger than any profile", "unreadable")
    try:
        profile = _PROFILE.decode(data)
    except (ValueError, RecursionError) as error:
        return LeftOut(name, *_why(data, error))
    if profile.schema != SCHEMA:
        return LeftOut(name, *_wrong_schema(profile.schema))
    return Record(name, hashlib.sha256(data).hexdigest(), profile)


def _bytes_of(path: Path) -> bytes | None:
    status = path.stat()  # a pipe would never end
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        return None
    with path.open("rb") as file:
        return file.read(MAX_BYTES)


def _why(data: bytes, error: Exception) -> tuple[str, str]:
    """Reason and kind; a newer schema or another kind of file is said before details are."""
    try:
        schema = _HEAD.decode(data).schema
    except (ValueError, RecursionError) as broken:
        if isinstance(broken, msgspec.ValidationError):
            return "holds no JSON object, so it is no profile", "not a profile"
        return f"is no JSON ({_first_line(broken)}): take another copy", "not a profile"
    if type(schema) is not int or schema != SCHEMA:
        return _wrong_schema(schema)
    return f"is broken ({_first_line(error)}): {_CHECK}", "broken"


def _wrong_schema(schema: Any) -> tuple[str, str]:
    if type(schema) is int and schema > SCHEMA:
        shown = str(schema) if schema < MOST else "of absurd size"
        return (
            f"has schema {shown} and this edge reads up to {SCHEMA}: install a newer edge",
            "newer schema",
        )
    return "has no schema number that ever was, so it is no profile", "not a profile"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__

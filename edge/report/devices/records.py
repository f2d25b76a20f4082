"""Reading one profile's file: a record of what can be compared, or the reason why not."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge.profile.reading import MAX_BYTES, SCHEMA
from edge.report.devices.structs import MOST, Profile


class _Head(msgspec.Struct):
    schema: Any = None


@dataclass(frozen=True)
class LeftOut:
    """What is not in the comparison, and the sentence that says why.

    A file or a row of one. `kind` groups the reasons: unreadable, not a
    profile, newer schema, broken, duplicate, no rows, invalid, impossible, not measured.
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
        broken = f"is broken ({_first_line(error)}): edge report --check says more"
        return LeftOut(name, *(_refusal(data) or (broken, "broken")))
    if profile.schema != SCHEMA:
        return LeftOut(name, *_wrong_schema(profile.schema))
    return Record(name, hashlib.sha256(data).hexdigest(), profile)


def _bytes_of(path: Path) -> bytes | None:
    status = path.stat()  # a pipe would never end
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        return None
    with path.open("rb") as file:
        return file.read(MAX_BYTES)


def _refusal(data: bytes) -> tuple[str, str] | None:
    """Reason and kind of what is no profile of this schema; None for one that is broken."""
    try:
        schema = _HEAD.decode(data).schema
    except (ValueError, RecursionError) as broken:
        if isinstance(broken, msgspec.ValidationError):
            return "holds no JSON object, so it is no profile", "not a profile"
        return f"is no JSON ({_first_line(broken)}): take another copy", "not a profile"
    if type(schema) is not int or schema != SCHEMA:
        return _wrong_schema(schema)
    return None


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

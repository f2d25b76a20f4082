"""What a profile says about its owner, and what it fails to say about itself."""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from edge.profile.fault import Finding, Place, shown

Data = Mapping[str, Any]
PRIVATE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?:/Users|/home|[A-Za-z]:\\+Users)[/\\]+[^/\\\s\"':,;]+"), "a home folder"),
    (re.compile(r"(?<![\w/])/root(?![\w-])|/var/folders/[\w/+-]+"), "a user's folder"),
    (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "a mail address"),
    (re.compile(r"\b[\w-]+\.(?:local|lan|home|internal)\b(?!\.)"), "a host name"),
    (re.compile(r"\b[\w-]+s-(?:MacBook|Mac-mini|Mac-Studio|iMac)[\w-]*"), "a host name"),
    (re.compile(r"\b(?:192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}\b"), "an address"),
    (re.compile(r"\b(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b"), "a network card's address"),
    (
        re.compile(r"\b[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}\b"),
        "a machine's identifier",
    ),
    (re.compile(r"\b(?=[A-Z]*\d)(?=\d*[A-Z])(?=(?:\D*\d){2})[A-Z0-9]{10,12}\b"), "a serial number"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}"), "an access token"),
)
# No text of a profile is longer; a pattern's work on it stays small.
LONGEST = 2000
# Names of users and hosts that name nobody, or are words of every profile.
NOBODY = {"root", "user", "admin", "runner", "ubuntu", "localhost", "apple", "demo", "edge", "mac"}
UNEXPLAINED = "is null, and no sentence in reasons says why."
# Which words a reason for a null uses, any of them.
NULLS = {
    "decode_tok_s": ("decode",),
    "prefill_tok_s": ("prefill", "prompt"),
    "ttft_s": ("ttft", "prefill", "prompt"),
    "power_w": ("power", "energy"),
    "joules_per_token": ("joules", "power", "energy"),
    "joules_per_token_net": ("joules", "power", "energy", "idle"),
    "bandwidth_fraction": ("bandwidth", "roofline", "decode"),
    "quality": ("quality",),
    "peak_memory_bytes": ("memory",),
}


def own_names() -> tuple[str, ...]:
    """Names of this machine and its user, which a profile measured here must not have."""
    host = platform.node()
    names = {host, host.split(".")[0]}
    with suppress(OSError, KeyError, ImportError):  # a container's user can have no name
        names.add(getpass.getuser())
    return tuple(sorted(n for n in names if len(n) > 2 and n.lower() not in NOBODY))


def privacy_faults(data: Any, names: Sequence[str] = (), place: Place = ()) -> Iterator[Finding]:
    """Texts and keys that name a person or a single machine.

    Args:
        data: anything out of a profile.
        names: words that are private beyond what can be told from their form.
        place: where data stands.
    """
    if isinstance(data, str):
        yield from _private(data, names, place)
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _private(key, names, (*place, key))
            yield from privacy_faults(value, names, (*place, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            if isinstance(value, str | dict | list):
                yield from privacy_faults(value, names, (*place, index))


def _private(text: str, names: Sequence[str], place: Place) -> Iterator[Finding]:
    text = text[:LONGEST]
    for pattern, what in PRIVATE:
        if found := pattern.search(text):
            yield Finding(place, f"holds {what} ({shown(found[0])}): take it out by hand.")
            return
    for name in names:
        if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text, re.IGNORECASE):
            yield Finding(place, f"holds {shown(name)}, a name of this machine or its user.")
            return


def reason_faults(row: Data) -> Iterator[Finding]:
    """Nulls and doubts without a sentence that says why.

    Args:
        row: fits the schema.
    """
    said = " ".join(row["reasons"]).lower()
    if row["verdict"] != "VALID" and not row["reasons"]:
        yield Finding(("reasons",), f"is empty, but a row that is {row['verdict']} needs a reason.")
    if row["verdict"] == "INVALID":
        return  # it withholds its figures, and has said why
    for key, words in NULLS.items():
        if row[key] is None and not any(word in said for word in words):
            yield Finding((key,), UNEXPLAINED)
    for key, value in (row["quality"] or {}).items():
        if value is None and "quality" not in said and key.lower() not in said:
            yield Finding(("quality", key), UNEXPLAINED)


def header_faults(profile: Data) -> Iterator[Finding]:
    """A date that there is not, and a row that is there twice.

    Args:
        profile: fits the schema.
    """
    try:
        datetime.fromisoformat(profile["created_utc"])
    except ValueError:
        what = f"is {shown(profile['created_utc'])}, which no calendar has."
        yield Finding(("created_utc",), what)
    seen: dict[tuple[Any, ...], int] = {}
    for index, row in enumerate(profile["rows"]):
        shape = row["workload"]
        key = (row["artefact"], row["engine"], *(shape[k] for k in ("prompt", "generate", "depth")))
        first = seen.setdefault((*key, shape.get("joint", False)), index)
        if first != index:
            yield Finding(("rows", index), f"measures the same as rows[{first}]: keep one of them.")

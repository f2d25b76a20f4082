"""A hole whose middle is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Hole:
    """What a model is given, and what was there.

    Attributes:
        name: where it is from: FILE:LINE:COL, or a task's id.
        kind: holes of one kind are scored together.
        prefix: the text before it, as much of it as a window can hold at least.
        suffix: the text after it, likewise.
        middle: what was there.
    """

    name: str
    kind: str
    prefix: str
    suffix: str
    middle: str


def digest(holes: Iterable[Hole]) -> str:
    """A hash of everything that the holes are."""
    found = hashlib.sha256()
    for hole in holes:
        found.update(json.dumps(astuple(hole)).encode() + b"\n")
    return found.hexdigest()

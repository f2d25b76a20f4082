"""One thing that is wrong with a file, and how places and values are spelt."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from edge.errors import printable

Place = tuple[str | int, ...]
PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LONGEST_VALUE = 60


@dataclass(frozen=True)
class Fault:
    """What is wrong, and where.

    `where` is a path into the JSON such as rows[2].decode_tok_s.median, empty for the whole file;
    `what` is a sentence with what to do, if that is not plain.
    """

    file: str
    where: str
    what: str

    def __str__(self) -> str:
        """As a compiler would print it."""
        return ": ".join(part for part in (self.file, self.where, self.what) if part)


@dataclass(frozen=True)
class Finding:
    """A fault before its file is known; `place` are the keys and indices that lead to it."""

    place: Place
    what: str


def spelt(place: Place) -> str:
    """As one would write it in Python or JavaScript: rows[2].decode_tok_s."""
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        elif PLAIN_KEY.fullmatch(step) and len(step) <= LONGEST_VALUE:
            text += f".{step}" if text else step
        else:
            text += f"[{shown(step)}]"
    return text


def shown(value: Any) -> str:
    """A value as JSON, cut if it is long."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**LONGEST_VALUE:  # printing it can take minutes
        return "a number of absurd size"
    text = printable(json.dumps(value[:1000] if isinstance(value, str) else value))
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"

"""A record's dictionaries without what its arrays hold, some six times as fast as plistlib.

More than nine tenths of a record are arrays: the frequencies of each cluster and CPU, and tasks.
No energy stands in them, and building Python objects of them is what would make the meter itself
use power.
"""

from __future__ import annotations

import plistlib
from typing import Any, NoReturn
from xml.parsers.expat import ParserCreate

OPEN, CLOSE = b"<array", b"</array"


def read_dictionaries(data: bytes) -> Any:
    """What `plistlib.loads` gives, arrays empty unless their tags are spelt unusually.

    All of it must be well-formed XML; what arrays hold need not be a property list.

    Raises:
        Exception: whatever expat and plistlib raise for what is none.
    """
    plain = _is_plain(data)
    return plistlib.loads(_without_arrays(data) if plain else data, fmt=plistlib.FMT_XML)


def _is_plain(data: bytes) -> bool:
    """Whether `<array` is the begin of a tag wherever these bytes stand."""
    odd: list[object] = []

    def note(*words: object) -> None:
        odd.append(words)

    def note_encoding(_version: str, encoding: str | None, _standalone: int) -> None:
        if encoding != "UTF-8":
            note(encoding)

    parser = ParserCreate()
    parser.CommentHandler = parser.StartCdataSectionHandler = note
    parser.ProcessingInstructionHandler = note
    parser.XmlDeclHandler = note_encoding
    parser.EntityDeclHandler = _refuse
    parser.Parse(data, True)
    return not odd


def _refuse(*_: object) -> NoReturn:
    raise ValueError("an entity is declared")


def _without_arrays(data: bytes) -> bytes:
    """Well-formed data with its outermost arrays emptied; as it is, if a tag is spelt oddly."""
    head, *pieces = data.split(OPEN)
    kept, depth = [head], 0
    for piece in pieces:
        inside, *behind = piece.split(CLOSE)
        if not all(part.startswith(b">") for part in (inside, *behind)):
            return data  # <array/>, or white space before the bracket
        depth += 1 - len(behind)
        if depth == 0:
            kept.append(behind[-1])
    return (OPEN + b">" + CLOSE).join(kept)

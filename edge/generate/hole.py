"""The place of a middle: FILE:LINE[:COL], or a mark in a text."""

import re
from pathlib import Path

from edge.errors import EdgeError
from edge.formats.files import read_text

CURSOR = "<CURSOR>"


def split_at_mark(text: str, mark: str = CURSOR, where: str = "stdin") -> tuple[str, str]:
    """Text before and after the cursor mark, which must occur exactly once."""
    if not mark:
        raise EdgeError("--cursor is empty; give the mark that stands at the cursor.")
    prefix, _, suffix = text.partition(mark)
    count = text.count(mark)
    if count != 1:
        raise EdgeError(
            f"{where} has the cursor mark {mark} {count} times; put one where the middle belongs, "
            f"or choose another mark."
        )
    return prefix, suffix


def read_hole(place: str) -> tuple[str, str]:
    """Text before and after FILE:LINE[:COL]."""
    path, line, column = parse_place(place)
    return split_at(read_text(path.expanduser()), line, column, str(path))


def parse_place(place: str) -> tuple[Path, int, int | None]:
    """FILE:LINE[:COL]; in a name with colons the last one or two numbers count."""
    # Not \d, which matches the digits of every script.
    found = re.fullmatch(r"(.+?):([0-9]{1,9})(?::([0-9]{1,9}))?", place, re.DOTALL)
    if found is None:
        raise EdgeError(f"{place!r} has no line number; write FILE:LINE or FILE:LINE:COL.")
    name, line, column = found.groups()
    if column is not None and not Path(name).exists() and Path(f"{name}:{line}").exists():
        name, line, column = f"{name}:{line}", column, None  # the name ends with a number
    return Path(name), int(line), None if column is None else int(column)


def split_at(text: str, line: int, column: int | None, where: str) -> tuple[str, str]:
    """Text before and after a cursor; lines end with LF or CRLF.

    Lines and columns (characters) count from 1; column None is the line's end. A text that ends
    with a line end has an empty line after it.
    """
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        raise EdgeError(f"{where} has lines 1 to {len(lines)}, not {line}; choose one of them.")
    content = lines[line - 1]
    if line < len(lines):
        content = content.removesuffix("\r")
    last = len(content) + 1
    column = last if column is None else column
    if not 1 <= column <= last:
        raise EdgeError(
            f"line {line} of {where} has columns 1 to {last}, not {column}; choose one of them."
        )
    at = sum(len(before) + 1 for before in lines[: line - 1]) + column - 1
    return text[:at], text[at:]

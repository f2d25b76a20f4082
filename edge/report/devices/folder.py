"""The profiles below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from edge.errors import EdgeError, printable
from edge.report.devices.records import LeftOut, Record, read_record


def read_folder(folder: Path) -> Iterator[Record | LeftOut]:
    """Every *.json below a folder, in the order of their names; links to folders are not followed.

    Raises:
        EdgeError: it is no folder, or has no such file.
    """
    if not folder.is_dir():
        raise EdgeError(f"{folder} is no folder: name one that holds profiles (*.json).")
    unreadable: list[LeftOut] = []
    found = sorted(_files(folder, unreadable))
    if not found and not unreadable:
        raise EdgeError(f"{folder} has no profiles (*.json): `edge bench --save` writes them.")
    yield from unreadable
    for path in found:
        yield read_record(path, _name(path, folder))


def _files(folder: Path, unreadable: list[LeftOut]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        name = _name(Path(error.filename), folder)
        unreadable.append(LeftOut(name, f"cannot be opened ({error.strerror})", "unreadable"))

    for parent, _, names in os.walk(folder, onerror=note):
        yield from (Path(parent, name) for name in names if name.lower().endswith(".json"))


def _name(path: Path, folder: Path) -> str:
    """Relative, as one line that can be printed: a file's name may be any bytes."""
    return printable(os.fsencode(path.relative_to(folder)).decode(errors="replace"))

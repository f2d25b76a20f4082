"""The texts that quality is measured on: a file, a folder, or the sample in this package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.errors import EdgeError
from edge.formats.files import MAX_TEXT_BYTES, decode_text, read_text

BUNDLED = Path(__file__).parents[1] / "data" / "corpus"
# Of the bundled folder: about the texts, none of them.
ABOUT = ("README.md", "LICENSE", "__init__.py")
# Folders of installed or generated files; hidden ones, with all version control, are left out too.
SKIPPED_FOLDERS = frozenset(("__pycache__", "node_modules", "site-packages", "venv"))
VENV_MARK = "pyvenv.cfg"


@dataclass(frozen=True)
class SourceText:
    """A text and its name, which is its path within the folder that was read."""

    name: str
    text: str


def read_texts(path: Path | None) -> list[SourceText]:
    """All of `iter_texts` at once."""
    return list(iter_texts(path))


def iter_texts(path: Path | None) -> Iterator[SourceText]:
    """Texts one at a time, in the order of their names, none of them blank.

    Args:
        path: a text file; a folder, whose text files are read, binary ones and hidden, version
            control's and installed folders left out; None for the bundled sample.

    Raises:
        EdgeError: nothing is there, it holds no text, or the file that was named is none.
    """
    if path is None:
        yield from _of_folder(BUNDLED, ABOUT)
    elif path.is_dir():
        yield from _of_folder(path)
    elif text := read_text(path):
        if not text.strip():
            raise EdgeError(f"{path} is blank; name a text to measure on.")
        yield SourceText(path.name, text)
    else:
        raise EdgeError(f"{path} is empty; name a text to measure on.")


def corpus_name(path: Path | None) -> str:
    """What to call it, without the folders of this machine."""
    return "bundled sample" if path is None else path.resolve().name or str(path)


def _of_folder(root: Path, left_out: tuple[str, ...] = ()) -> Iterator[SourceText]:
    found = False
    for file in _files(root):
        name = file.relative_to(root).as_posix()
        text = None if name in left_out else _text_or_none(file)
        if text:
            found = True
            yield SourceText(name, text)
    if not found:
        raise EdgeError(f"{root} holds no text file; name a folder of source code, or a file.")


def _files(folder: Path) -> Iterator[Path]:
    """Regular files below a folder, sorted; links are not followed, so it ends."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise EdgeError(
            f"{folder} cannot be read ({error.strerror}); check its permissions."
        ) from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if entry.is_file(follow_symlinks=False):
            yield path
        elif entry.is_dir(follow_symlinks=False) and not _is_skipped(path):
            yield from _files(path)


def _is_skipped(folder: Path) -> bool:
    return folder.name in SKIPPED_FOLDERS or (folder / VENV_MARK).exists()


def _text_or_none(file: Path) -> str | None:
    """A file's text; None for what is no text, blank, or too large to be source code."""
    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            return None
        text = decode_text(file.read_bytes(), str(file))
    except OSError as error:
        raise EdgeError(f"{file} cannot be read ({error.strerror}); leave it out.") from None
    except EdgeError:  # binary
        return None
    return text if text.strip() else None

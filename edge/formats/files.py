"""Atomic writes, and bounded reads of untrusted JSON and text."""

import json
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from edge.errors import EdgeError

DEMO_PATH = Path(__file__).resolve().parents[1] / "data" / "demo"
PARTIAL, OLD = "partial", "old"  # as in .TARGET.partial-PID and .TARGET.old-PID
MAX_BYTES = 100_000_000  # the largest tokenizer.json of a published model has some 30 MB
MAX_TEXT_BYTES = 64_000_000  # more than any context holds
LFS_POINTER = b"version https://git-lfs"  # begins what git has of a large file
MAX_NAME_BYTES = 200  # file systems take 255, and a stamp or an ending may follow
UNSAFE = "/\\:"  # they part names on some system
MAX_DEPTH = 64  # no file of a checkpoint nests deeper than ten
# A lone surrogate cannot be encoded again.
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class LfsPointer(EdgeError):
    """A file that git has not fetched."""


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Path for a new file or directory that replaces the target if the block raises nothing."""
    partial = target.with_name(f".{target.name}.{PARTIAL}-{os.getpid()}")
    try:
        with os_errors_as_edge_error(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            remove(partial)
            yield partial
            _take_place(partial, target)
    finally:
        with suppress(OSError):  # the folder may be unreadable
            remove(partial)


@contextmanager
def os_errors_as_edge_error(target: Path) -> Iterator[None]:
    """Turn an OSError of a write into an EdgeError that names the target."""
    try:
        yield
    except OSError as error:
        raise EdgeError(
            f"{target} cannot be written ({error.strerror or error}); check the disk's free space "
            f"and the folder's permissions, or choose another folder."
        ) from None


def check_writable(folder: Path) -> None:
    """Make the folder and try to write in it."""
    with os_errors_as_edge_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def new_file(path: Path) -> Path:
    """Makes an empty file of that name, or with -2, -3 ... behind it where there is one."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    with os_errors_as_edge_error(path):
        for wanted in chain([path], names):
            with suppress(FileExistsError):
                wanted.open("x").close()
                return wanted
    raise AssertionError  # one of endlessly many names is free


def check_free(folder: Path, needed_bytes: int, what: str, advice: str) -> None:
    """Raise EdgeError if the folder's disk has less space free; the two figures always differ."""
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        needed_mb, free_mb = -(-needed_bytes // 10**5) / 10, free_bytes // 10**5 / 10
        raise EdgeError(
            f"{what} needs {needed_mb:,.1f} MB and the disk of {folder} has {free_mb:,.1f} MB "
            f"free; {advice}."
        )


def remove(path: Path) -> None:
    """Delete a file or a directory if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _take_place(partial: Path, target: Path) -> None:
    if not target.is_dir() or target.is_symlink():
        partial.replace(target)
        return
    old = target.with_name(f".{target.name}.{OLD}-{os.getpid()}")  # rename cannot replace a folder
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    # Renamed before it is deleted: a folder called old is complete and can be restored.
    old.rename(partial)
    remove(partial)


def user_path(name: str | Path) -> Path:
    """A path whose leading ~ is the home directory; ~nobody stays what it is."""
    return Path(os.path.expanduser(name))  # noqa: PTH111  Path's raises for an unknown user


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """A regular file opened for reading; a pipe or a device is refused without waiting for it."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise EdgeError(f"{path} is not a regular file; check the path.")
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise LfsPointer(
                    f"{path} is a Git LFS pointer instead of the file; type `git lfs pull` in its "
                    f"folder, or download it again."
                )
            file.seek(0)
            yield file
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(path, error) from None


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def unreadable(path: Path, error: OSError | ValueError) -> EdgeError:
    """An error of opening or reading a file, with the advice that helps."""
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return EdgeError(f"{path} is missing; check the path.")
        case IsADirectoryError():
            return EdgeError(f"{path} is a directory, not a file; check the path.")
        case PermissionError():
            advice = "check its permissions"
        case _:
            advice = "check the path and the disk"
    reason = getattr(error, "strerror", None) or error
    return EdgeError(f"{path} cannot be read ({reason}); {advice}.")


def read_small_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Content of a file of at most `max_bytes`."""
    with open_file(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise EdgeError(f"{path} is larger than {max_bytes // 10**6} MB; give a smaller file.")
    return data


def visible(folder: Path) -> list[Path]:
    """The entries of a directory in order of name, without dotfiles.

    macOS writes a ._NAME beside each file on volumes such as exFAT and SMB.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise unreadable(folder, error) from None


def read_json_object(path: Path) -> dict[str, Any]:
    return parse_json_object(read_small_file(path), str(path))


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """The object in some JSON, read by `strict_json`; `where` names it in errors."""
    try:
        parsed = strict_json(data)
    except ValueError as error:
        raise EdgeError(f"{where} cannot be read as JSON ({error}); download it again.") from None
    if not isinstance(parsed, dict):
        raise EdgeError(f"{where} is not a JSON object; download it again.")
    return parsed


def strict_json(data: bytes) -> Any:
    """Parse JSON; a ValueError for duplicate keys, NaN, lone surrogates and deep nesting too."""
    too_deep = f"nested deeper than {MAX_DEPTH} levels"
    try:
        parsed = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(too_deep) from None
    if _is_deeper(parsed, MAX_DEPTH):
        raise ValueError(too_deep)
    if SURROGATE.search(data):
        json.dumps(parsed, ensure_ascii=False).encode()
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} appears twice")
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_deeper(value: Any, limit: int) -> bool:
    """True if containers nest deeper than the limit; not recursive."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        children = (c for node in level for c in (node.values() if type(node) is dict else node))
        level = [child for child in children if isinstance(child, dict | list)]
    return bool(level)


def read_text(path: Path) -> str:
    """A UTF-8 file's text, line ends unchanged."""
    return decode_text(read_small_file(path, MAX_TEXT_BYTES), str(path))


def decode_text(data: bytes, where: str) -> str:
    """UTF-8 bytes as text without a byte order mark; `where` names them in errors."""
    if b"\0" in data:
        raise EdgeError(f"{where} is binary; give a text file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EdgeError(f"{where} is not UTF-8 at byte {error.start}; save it as UTF-8.") from None


def safe_name(text: str) -> str:
    """Untrusted text as the name of one visible file or folder."""
    name = "".join(c if c.isprintable() and c not in UNSAFE else "-" for c in text)
    name = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore").strip(" .")
    return name or "model"


def check_argument(text: str, flag: str) -> str:
    """The text of an argument; an EdgeError for bytes that are not UTF-8 (surrogates)."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise EdgeError(f"{flag} is not UTF-8; pass the text through a file or stdin.")
    return text

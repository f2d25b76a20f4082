"""Outputs that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge.errors import EdgeError

# Names of what is on its way in and on its way out: .TARGET.partial-PID, .TARGET.old-PID.
PARTIAL, OLD = "partial", "old"


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Write to a temporary sibling that takes the target's place only if all went well.

    Yields the sibling's path: make a file or a directory of it. An older target stays in
    place until then.

    Raises:
        EdgeError: the folder cannot be written, or the disk is full.
    """
    partial = target.with_name(f".{target.name}.{PARTIAL}-{os.getpid()}")
    try:
        with os_errors_as_edge_error(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            remove(partial)
            yield partial
            _take_place(partial, target)
    finally:
        with suppress(OSError):  # a folder that cannot be read holds no partial of ours
            remove(partial)


@contextmanager
def os_errors_as_edge_error(target: Path) -> Iterator[None]:
    """Turn whatever a disk or a folder refuses into an EdgeError that names the target.

    Raises:
        EdgeError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise EdgeError(
            f"{target} cannot be written ({reason}); check the disk's free space and the "
            f"folder's permissions, or choose another folder."
        ) from None


def check_writable(folder: Path) -> None:
    """Make the folder and try to write in it, before hours of work depend on it.

    Raises:
        EdgeError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EdgeError(
            f"{folder} cannot be written ({error.strerror}); choose another folder."
        ) from None


def remove(path: Path) -> None:
    """Delete a file or a directory if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _take_place(partial: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():  # rename cannot replace a full directory
        old = target.with_name(f".{target.name}.{OLD}-{os.getpid()}")
        target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            old.rename(target)
            raise
        # Deleted under the other name: whatever is called old is whole and can be put back.
        old.rename(partial)
        remove(partial)
    else:
        partial.replace(target)

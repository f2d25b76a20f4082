"""The folder that artefacts go to: one converter at a time, room on the disk, no litter."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.errors import EdgeError
from edge.formats.files import OLD, PARTIAL, check_writable, remove

# What this program leaves behind if it is killed; nothing else is ever touched.
LEFTOVER = re.compile(rf"\.((?:mlx|gguf)-[\w.]+)\.({PARTIAL}|{OLD})-\d+")
# A disk filled to the last byte is of no use to anyone.
SPARE_BYTES = 64 << 20


@contextmanager
def lock_folder(out: Path, notice: Callable[[str], None]) -> Iterator[None]:
    """Make the folder and hold it alone; the lock ends with the process, however it ends.

    Args:
        out: the folder.
        notice: told if another process has it, before waiting for that one.

    Raises:
        EdgeError: the folder cannot be made or written.
    """
    check_writable(out)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notice(f"another process is converting to {out}; waiting for it to finish.")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # ENOTSUP: some network volumes of macOS
            raise EdgeError(
                f"{out} is on a disk whose files cannot be locked ({error.strerror}); choose "
                f"another --out, on a local disk."
            ) from None
        _clear_leftovers(out)
        yield
    finally:
        os.close(descriptor)


def check_room(out: Path, needed_bytes: int) -> None:
    """Compare what will be written with what is free.

    Raises:
        EdgeError: the disk is too small.
    """
    free_bytes = shutil.disk_usage(out).free
    if needed_bytes + SPARE_BYTES > free_bytes:
        raise EdgeError(
            f"{out} needs {needed_bytes / 1e9:.2f} GB and its disk has {free_bytes / 1e9:.2f} GB "
            f"free; free some, ask for fewer artefacts, or choose another --out."
        )


def _clear_leftovers(out: Path) -> None:
    """Undo what a killed process left; nobody else writes here now."""
    for path in out.iterdir():
        match = LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        target = out / match[1]
        if match[2] == OLD and not target.exists():
            path.rename(target)  # killed between taking the old one away and the new one's place
        else:
            remove(path)

"""Results on stdout, exact to the byte; what keeps them from getting there is one sentence."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from edge.errors import EdgeError


def check_stdout() -> None:
    """Refuse a closed stdout (`>&-`) before anything is computed for it.

    Raises:
        EdgeError: it is closed.
    """
    if sys.stdout is None:
        raise EdgeError("stdout is closed; let it go to a terminal, a file or a pipe.")


def write_stdout(text: str) -> None:
    """Print at once, in bytes: nothing may translate line ends, or fail to encode them.

    Raises:
        BrokenPipeError: its reader went away.
        EdgeError: it is closed, or cannot be written.
    """
    check_stdout()
    with _refusals():
        sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
        sys.stdout.buffer.flush()


def flush_stdout() -> None:
    """Write what is held back, with the errors of `write_stdout`."""
    if sys.stdout is not None:
        with _refusals():
            sys.stdout.flush()


def discard_stdout() -> None:
    """Drop what it still holds, or the end of the process would fail with it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fill_closed_streams() -> None:
    """Open the null device for closed streams: else a file that is opened gets their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk
        discard_stdout()
        raise EdgeError(
            f"stdout cannot be written ({error.strerror}); make room, or let it go elsewhere."
        ) from None

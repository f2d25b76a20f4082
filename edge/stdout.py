"""Results on stdout, exact to the byte; what keeps them from getting there is one sentence."""

import os
import sys

from edge.errors import EdgeError


def fill_closed_streams() -> None:
    """A file that is opened gets the first free number: never that of a closed stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def check_stdout() -> None:
    """Refuses a closed stdout (`>&-`), before anything is computed for it."""
    if sys.stdout is None:
        raise EdgeError("stdout is closed; let it go to a terminal, a file or a pipe.")


def write_stdout(text: str) -> None:
    """Prints at once, in bytes: nothing may translate line ends, or fail to encode them.

    Raises:
        BrokenPipeError: its reader went away.
        EdgeError: it is closed, or cannot be written.
    """
    check_stdout()
    _write(text.encode("utf-8", errors="replace"))


def flush_stdout() -> None:
    """Writes what is held back; errors of `write_stdout`, but none where stdout is closed."""
    if sys.stdout is not None:
        _write(b"")


def discard_stdout() -> None:
    """Drops what it still holds, or the end of the process would fail with it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(data: bytes) -> None:
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk
        discard_stdout()
        raise EdgeError(
            f"stdout cannot be written ({error.strerror}); make room, or let it go elsewhere."
        ) from None

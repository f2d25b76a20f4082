"""Results on stdout, exact to the byte, and errors in writing them."""

import os
import sys

from edge.errors import EdgeError


def fill_closed_streams() -> None:
    """Opens /dev/null for closed standard streams, or the next file would get their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def check_stdout() -> None:
    """Raises an EdgeError for a closed stdout (`>&-`), before anything is computed."""
    if sys.stdout is None:
        raise EdgeError("stdout is closed; direct it to a terminal, a file or a pipe.")


def write_stdout(text: str) -> None:
    """Writes text in UTF-8 and flushes it; line ends are not translated.

    Raises a BrokenPipeError if the reader is gone, an EdgeError for other errors.
    """
    check_stdout()
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk
        discard_stdout()
        raise EdgeError(
            f"stdout cannot be written ({error.strerror}); free some space or direct it elsewhere."
        ) from None


def flush_stdout() -> None:
    """Flushes stdout unless it is closed; errors as in `write_stdout`."""
    if sys.stdout is not None:
        write_stdout("")


def discard_stdout() -> None:
    """Discards buffered output, which would fail again at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

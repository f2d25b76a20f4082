"""The standard streams: exact to the byte in pipes and files, harmless on terminals."""

import io
import os
import sys
from typing import TextIO

from edge.errors import JOINERS, EdgeError, with_escapes


class TerminalText:
    r"""Applies `with_escapes` to text that comes in pieces; \r\n becomes \n."""

    def __init__(self) -> None:
        self._before = self._return = ""

    def add(self, text: str) -> str:
        """Text that can be shown now."""
        text = (self._return + text).replace("\r\n", "\n")
        self._return = "\r" if text.endswith("\r") else ""
        shown = with_escapes(self._before + text.removesuffix("\r")).removeprefix(self._before)
        if shown:
            self._before = "" if shown[-1] in JOINERS else shown[-1]
        return shown


class Terminal(io.TextIOWrapper):
    """A terminal where everything printed goes through `with_escapes`, whoever wrote the text.

    `unfiltered` is for our own colours, progress bars and line editor.
    """

    def __init__(self, stream: io.TextIOWrapper):
        super().__init__(
            stream.buffer, stream.encoding, stream.errors, line_buffering=True, write_through=True
        )
        self.unfiltered = stream
        self._pieces = TerminalText()

    def write(self, text: str) -> int:
        """Shows text; one that is printed in several calls as well."""
        super().write(self._pieces.add(text))
        return len(text)


def prepare_streams() -> None:
    """Opens closed streams, encodes pipes in UTF-8, and filters what is printed on terminals.

    Raises an EdgeError for a closed stdout, before anything is computed.
    """
    for number in range(3):  # or the next file would get their number
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:
        sys.stderr = _nothing()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    sys.stderr = _prepared(sys.stderr)
    if sys.stdout is None:
        sys.stdout = _nothing()
        raise EdgeError("stdout is closed; direct it to a terminal, a file or a pipe.")
    sys.stdout = _prepared(sys.stdout)


def _nothing() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _prepared(stream: TextIO) -> TextIO:
    if isinstance(stream, Terminal) or not isinstance(stream, io.TextIOWrapper):
        return stream
    if stream.isatty():
        stream.reconfigure(errors="backslashreplace")
        return Terminal(stream)
    stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    return stream


def unfiltered(stream: TextIO) -> TextIO:
    """A stream that passes escape codes to a terminal."""
    return stream.unfiltered if isinstance(stream, Terminal) else stream


def write_stdout(text: str) -> None:
    """Prints text and flushes it."""
    sys.stdout.write(text)
    sys.stdout.flush()


def end_stdout() -> None:
    """Writes what is buffered, or discards it: it would fail again at the end of the process."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""The chat's output on a terminal, which never redraws printed text."""

import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from textwrap import TextWrapper
from types import FrameType
from typing import Any, TextIO, TypeVar

from edge.errors import with_escapes
from edge.stdout import unfiltered

Event = TypeVar("Event")
DIM, RESET = "\x1b[2m", "\x1b[0m"
# The first line of a code block: fence and language; and a line that may become one.
OPENING = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`\n]*\n?$")
OPENING_BEGUN = re.compile(r"[ \t]*(`{0,2}|~{0,2}|`{3,}[^`\n]*|~{3,}[^\n]*)$")
# Each line is highlighted with up to this many lines before it: it may be inside a string.
LINES_REREAD = 100


def is_capable(stream: TextIO) -> bool:
    """True for a terminal that understands escape codes."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


class Highlighter:
    """Colours code blocks in text that comes in pieces: prose at once, code line by line."""

    def __init__(self) -> None:
        self._line = ""  # the part of the current line that was held back
        self._line_begun = False  # another part of it was returned
        self._fence = ""  # of the current block
        self._lexer: Any = None
        self._block: list[str] = []

    def add(self, text: str) -> str:
        """Text that can be shown now."""
        *ended, rest = re.split(r"(?<=\n)", text)
        return "".join(map(self._end_line, ended)) + self._add_rest(rest)

    def finish(self) -> str:
        """Text that was held back."""
        return self._end_line("") if self._line else ""

    def _add_rest(self, text: str) -> str:
        self._line += text
        waits = self._lexer is not None or OPENING_BEGUN.match(self._line)
        if not self._line or (waits and not self._line_begun):
            return ""
        line, self._line, self._line_begun = self._line, "", True
        return line

    def _end_line(self, end: str) -> str:
        line, self._line = self._line + end, ""
        begun, self._line_begun = self._line_begun, False
        if begun:
            return line
        if not self._fence:
            fence = OPENING.match(line)
            if fence is not None:
                self._fence, self._lexer, self._block = fence[1], _find_lexer(fence[2]), []
            return line
        bare = line.strip()
        if bare.startswith(self._fence) and not bare.strip(self._fence[0]):
            self._fence, self._lexer = "", None
        return line if self._lexer is None else self._coloured(line)

    def _coloured(self, line: str) -> str:
        from pygments import highlight  # type: ignore[import-untyped]
        from pygments.formatters import TerminalFormatter  # type: ignore[import-untyped]

        if len(self._block) >= LINES_REREAD:
            self._block.clear()
        self._block.append(line)
        found = highlight("".join(self._block), self._lexer, TerminalFormatter()).split("\n")
        return f"{found[-2]}\n" if line.endswith("\n") else found[-1]


def _find_lexer(language: str) -> Any:
    # Imported here: most answers have no code.
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
    from pygments.util import ClassNotFound  # type: ignore[import-untyped]

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False) if language else None
    except ClassNotFound:
        return None


class Screen:
    """Output of the chat, with colours on capable terminals unless NO_COLOR is set."""

    def __init__(self, stream: TextIO, quiet: bool = False):
        self._stream, self._quiet = unfiltered(stream), quiet
        self.colour = is_capable(stream) and not os.environ.get("NO_COLOR")
        self._at_line_start = True

    def write(self, text: str) -> None:
        """Prints text of an answer, which must be sanitised."""
        if text:
            self._stream.write(text)
            self._stream.flush()
            self._at_line_start = text.removesuffix(RESET).endswith("\n")

    def say(self, text: str) -> None:
        """Prints a message on lines of its own."""
        self._print(text, dim=False)

    def note(self, text: str) -> None:
        """Prints a less important message, dim where there are colours."""
        if not self._quiet:
            self._print(text, dim=self.colour)

    def prompt_shown(self) -> None:
        """Records that the line editor ended its line."""
        self._at_line_start = True

    def _print(self, text: str, dim: bool) -> None:
        text = self._wrapped(with_escapes(text))
        start = "" if self._at_line_start else "\n"
        self.write(start + (f"{DIM}{text}{RESET}\n" if dim else f"{text}\n"))

    def _wrapped(self, text: str) -> str:
        if not self._stream.isatty():
            return text
        # Only between words: a path must stay whole to be copied.
        wrap = TextWrapper(
            width=shutil.get_terminal_size().columns - 1,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        )
        return "\n".join(wrap.fill(line) for line in text.split("\n"))


@contextlib.contextmanager
def echo_off() -> Iterator[None]:
    """Does not echo keys into the answer; the next input line gets them."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    import termios  # not on Windows

    settings = termios.tcgetattr(sys.stdin)
    quiet = settings[:]
    # Ctrl-C stays a signal, Enter stays what an input line needs, and no line is held back.
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    quiet[3] |= termios.NOFLSH  # otherwise Ctrl-C would discard the keys typed before it

    def be_quiet(*_: object) -> None:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)

    be_quiet()
    before = signal.signal(signal.SIGCONT, be_quiet)  # `fg` restores the shell's settings
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, before)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, settings)


def follow(events: Generator[Event, None, None], show: Callable[[Event], None]) -> list[Event]:
    """Shows events until they end or Ctrl-C closes them, at once if pressed a second time.

    Returns the events so far.
    """
    pressed, seen = False, list[Event]()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed or not seen:
            raise KeyboardInterrupt
        pressed = True

    before: Any = signal.signal(signal.SIGINT, stop)
    try:
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(events):
            for event in events:
                seen.append(event)
                show(event)
                if pressed:
                    break
    finally:
        signal.signal(signal.SIGINT, before)
    return seen

"""The terminal while the chat writes on it, or what stands in for one.

Nothing that is printed is ever redrawn: what scrolled by can be copied, piped and resized. While
an answer is printed keys are not shown, and Ctrl-C stops it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import TextWrapper
from types import FrameType
from typing import Any, TextIO

DIM, RESET = "\x1b[2m", "\x1b[0m"
# They reorder what is shown, so that code reads as what it is not (CVE-2021-42574).
BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def has_colour(stream: TextIO) -> bool:
    """Whether escape codes belong on a stream: a terminal that has them and no NO_COLOR."""
    return is_capable(stream) and not os.environ.get("NO_COLOR")


def is_capable(stream: TextIO) -> bool:
    """Whether a stream is a terminal that understands escape codes at all."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


class Sanitiser:
    r"""Makes text harmless for a terminal: what it would act on shows as an escape, \x1b.

    Line feeds and tabs pass, and a carriage return before a line feed is dropped. How the text
    is cut into pieces makes no difference.
    """

    def __init__(self) -> None:
        self._return = ""

    def add(self, text: str) -> str:
        """Text that can be shown now."""
        text = (self._return + text).replace("\r\n", "\n")
        self._return = "\r" if text.endswith("\r") else ""
        return visible(text.removesuffix("\r"))

    def finish(self) -> str:
        """What was held back."""
        rest, self._return = self._return, ""
        return visible(rest)


def visible(text: str) -> str:
    """Text with every character that a terminal would act on as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if _is_control(c) else c for c in text)


def _is_control(c: str) -> bool:
    if c in "\n\t":
        return False
    return unicodedata.category(c) in ("Cc", "Cs") or c in BIDI


def _escape(c: str) -> str:
    return f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}"


class Screen:
    """What the loop prints on.

    Args:
        stream: by default stdout.
        colour: by default what the stream and the environment allow.
    """

    def __init__(self, stream: TextIO | None = None, colour: bool | None = None):
        self._stream = sys.stdout if stream is None else stream
        self.colour = has_colour(self._stream) if colour is None else colour
        self._at_line_start = True

    def write(self, text: str) -> None:
        """Print text that is known to be harmless, at once."""
        if text:
            self._stream.write(text)
            self._stream.flush()
            self._at_line_start = text.removesuffix(RESET).endswith("\n")

    def say(self, text: str) -> None:
        """Print lines of our own, beginning on a new line."""
        self.fresh_line()
        self.write(self._wrapped(text) + "\n")

    def note(self, text: str) -> None:
        """Print a line that is less important, dim where there are colours."""
        self.fresh_line()
        text = self._wrapped(text)
        self.write(f"{DIM}{text}{RESET}\n" if self.colour else f"{text}\n")

    def _wrapped(self, text: str) -> str:
        """Our own words between words; a path stays whole, so that it can be copied."""
        text = visible(text)
        if not self._stream.isatty():
            return text
        wrap = TextWrapper(
            width=shutil.get_terminal_size().columns - 1,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
            replace_whitespace=False,
        )
        return "\n".join(wrap.fill(line) for line in text.split("\n"))

    def fresh_line(self) -> None:
        """End the line if something is on it."""
        if not self._at_line_start:
            self.write("\n")

    def prompt_shown(self) -> None:
        """The input was printed by somebody else, who ended its line."""
        self._at_line_start = True


# --- the keyboard


@contextmanager
def keys_unseen() -> Iterator[None]:
    """What is typed meanwhile is not echoed into the answer; the next input line gets it."""
    settings = _settings()
    if settings is None:
        yield
        return
    import termios

    quiet = settings[:]
    # Ctrl-C stays a signal. Enter stays what it is for an input line, and no line is held.
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    quiet[3] |= termios.NOFLSH  # or Ctrl-C would throw away what was typed before it

    def be_quiet(*_: object) -> None:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)

    be_quiet()
    before = signal.signal(signal.SIGCONT, be_quiet)  # `fg` brings the shell's settings
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, before)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, settings)


def _settings() -> list[Any] | None:
    """The terminal's, None if stdin is none or there is no such thing here."""
    if sys.stdin is None or not sys.stdin.isatty():
        return None
    try:
        import termios
    except ImportError:  # Windows
        return None
    try:
        return termios.tcgetattr(sys.stdin)
    except termios.error:
        return None


class StopKey:
    """Within it, Ctrl-C sets `pressed`, for the loop to look at between two events.

    Before `begun`, while a long prompt is computed and no event comes, and the second time, it
    is a KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.pressed = False
        self.begun = False
        self._before: Any = None

    def __enter__(self) -> StopKey:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self.pressed or not self.begun:
            raise KeyboardInterrupt
        self.pressed = True

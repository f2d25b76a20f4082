"""The screen while the chat writes on it, which never redraws what was printed."""

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

Event = TypeVar("Event")
DIM, RESET = "\x1b[2m", "\x1b[0m"
# Control characters, lone surrogates, and what reorders what is shown, so that code reads as what
# it is not (CVE-2021-42574).
ACTED_ON = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def is_capable(stream: TextIO) -> bool:
    """A stream is a terminal that understands escape codes."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


class Sanitiser:
    r"""Makes text in pieces harmless for a terminal: as `visible`, and \r\n becomes \n."""

    def __init__(self) -> None:
        self._return = ""

    def add(self, text: str) -> str:
        """Text that can be shown now."""
        text = (self._return + text).replace("\r\n", "\n")
        self._return = "\r" if text.endswith("\r") else ""
        return visible(text.removesuffix("\r"))

    def finish(self) -> str:
        """Text that was held back."""
        rest, self._return = self._return, ""
        return visible(rest)


def visible(text: str) -> str:
    """Text with every character that a terminal would act on as an escape."""
    return ACTED_ON.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class Screen:
    """Output of the chat; colours are for capable terminals, unless NO_COLOR is set."""

    def __init__(
        self, stream: TextIO | None = None, colour: bool | None = None, quiet: bool = False
    ):
        self._stream = sys.stdout if stream is None else stream
        wanted = is_capable(self._stream) and not os.environ.get("NO_COLOR")
        self.colour = wanted if colour is None else colour
        self._quiet = quiet
        self._at_line_start = True

    def write(self, text: str) -> None:
        """Prints text that is known to be harmless, at once."""
        if text:
            self._stream.write(text)
            self._stream.flush()
            self._at_line_start = text.removesuffix(RESET).endswith("\n")

    def say(self, text: str) -> None:
        """Prints lines of our own, beginning on a new line."""
        self._print(text, dim=False)

    def note(self, text: str) -> None:
        """Prints a line that is less important, dim where there are colours."""
        if not self._quiet:
            self._print(text, dim=self.colour)

    def prompt_shown(self) -> None:
        """The input was printed by the line editor, which ended its line."""
        self._at_line_start = True

    def _print(self, text: str, dim: bool) -> None:
        text = self._wrapped(visible(text))
        start = "" if self._at_line_start else "\n"
        self.write(start + (f"{DIM}{text}{RESET}\n" if dim else f"{text}\n"))

    def _wrapped(self, text: str) -> str:
        """Our own words between words; a path stays whole, so that it can be copied."""
        if not self._stream.isatty():
            return text
        wrap = TextWrapper(
            width=shutil.get_terminal_size().columns - 1,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        )
        return "\n".join(wrap.fill(line) for line in text.split("\n"))


@contextlib.contextmanager
def echo_off() -> Iterator[None]:
    """Keys typed meanwhile are not echoed into the answer; the next input line gets them."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    import termios  # Windows has none

    settings = termios.tcgetattr(sys.stdin)
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


def follow(events: Generator[Event, None, None], show: Callable[[Event], None]) -> None:
    """Shows events until they end or Ctrl-C closes them, at once if pressed a second time."""
    pressed = begun = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed or not begun:
            raise KeyboardInterrupt
        pressed = True

    before: Any = signal.signal(signal.SIGINT, stop)
    try:
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(events):
            for event in events:
                begun = True
                show(event)
                if pressed:
                    break
    finally:
        signal.signal(signal.SIGINT, before)

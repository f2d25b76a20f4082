"""The keyboard while an answer is being written: keys are not shown, and Ctrl-C stops it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


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

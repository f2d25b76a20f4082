"""An alarm for code that may hang."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Overdue(BaseException):
    """Not an Exception, which the code under test may catch and report as something else."""


@contextmanager
def alarm(limit_s: float = 5.0) -> Iterator[None]:
    """Raises Overdue in the block after `limit_s`, once: a second could hit what comes after."""

    def ring(*_: object) -> None:
        raise Overdue(f"not done after {limit_s} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

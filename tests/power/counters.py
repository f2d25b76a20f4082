"""Time that passes only when a meter waits, and then takes the counters along."""

import threading
from itertools import pairwise


class Time:
    """A clock and a wait in one.

    Every wait moves the clock on by what was asked for and calls `tick(now_s)`, where a test
    lets its counters grow. The thread's waits, told by their period, end after `seconds`.
    """

    def __init__(self, tick, seconds, period_s=0.25):
        self.now_ns, self._tick, self._period_s = 10**12, tick, period_s
        self._end_ns = self.now_ns + int(seconds * 1e9)
        self.errors = []

    def clock(self):
        self.now_ns += 1000  # looking takes time too
        return self.now_ns

    def wait(self, event, seconds):
        assert isinstance(event, threading.Event)
        if seconds == self._period_s and self.now_ns >= self._end_ns:
            return True
        self.now_ns += int(seconds * 1e9)
        self._tick((self.now_ns - 10**12) / 1e9)
        return False


def totals(samples):
    """Joules per rail over all samples."""
    sums = {}
    for sample in samples:
        for rail, joules in sample.joules.items():
            sums[rail] = sums.get(rail, 0.0) + joules
    return sums


def span_s(samples):
    return (samples[-1].end_ns - samples[0].begin_ns) / 1e9


def contiguous(samples):
    return all(a.end_ns == b.begin_ns for a, b in pairwise(samples))

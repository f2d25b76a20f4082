"""Meters over counters of joules that only grow: read them now and then, keep the differences.

Counters are published in steps: RAPL's every millisecond, NVML's every 20 to 100 ms, IOReport's
on macOS 27 in batches two seconds apart. A reader that cuts time at its own ticks sees zeros and
then an impossible spike. So a sample ends when the counters have moved, not when they were looked
at: its energy and its time belong together, whatever the step, and a longer step only shows as a
longer sample and hence a larger edge error.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edge.power.meter import Sample

Clock = Callable[[], int]
Wait = Callable[[threading.Event, float], bool]

# macOS 27 publishes every 2.2 s; a processor that is on cannot use nothing for longer than this.
STALL_S = 5.0
# How closely the beginning and the end of a measurement follow a step of the counters.
FINE_S = 0.02
# No rail of any machine this runs on: a counter that jumps so far was reset.
MAX_RAIL_W = 10_000.0
NS_PER_S = 1e9


@dataclass(frozen=True)
class Reading:
    """Joules since some beginning. `beside` overlaps what is in `joules` and is never added."""

    joules: Mapping[str, float]
    beside: Mapping[str, float] = field(default_factory=dict)


class PollingMeter(ABC):
    """A thread that reads counters. A source says what it is and how to read; see `Meter`.

    `pulse` are the rails that always move while a machine is on: a sample ends when all of
    them have. `live` are those that can be trusted while the pulse stands still.

    Args:
        clock: nanoseconds, the same clock as tokens are stamped with.
        wait: waits for an event or so many seconds; true when the event is set.
    """

    source = ""
    boundary = ""
    unavailable: str | None = None
    pulse: Sequence[str] = ()
    live: Sequence[str] = ()
    period_s = 0.25

    def __init__(self, clock: Clock = time.monotonic_ns, wait: Wait = threading.Event.wait):
        self._clock, self._wait = clock, wait
        self._samples: list[Sample] = []
        self._flags: list[str] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._last: tuple[int, Reading] | None = None
        self._aligned = True

    @property
    def flags(self) -> Sequence[str]:
        """Doubts about the samples, a sentence each."""
        return tuple(self._flags)

    def start(self) -> None:
        """Begin sampling, at a step of the counters where one comes."""
        self._samples, self._flags, self._last, self._aligned = [], [], None, True
        self._stopping = threading.Event()
        if self.unavailable is None and self._guarded(self._begin):
            self._thread = threading.Thread(target=self._guarded, args=(self._run,), daemon=True)
            self._thread.start()

    def stop(self) -> Sequence[Sample]:
        """End sampling after the next step of the counters; everything since `start`."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._guarded(self._end)
        return tuple(self._samples)

    @abstractmethod
    def _read(self) -> Reading:
        """Read every counter; any exception ends the measurement with a flag."""

    def _begin(self) -> None:
        self._last = self._stamped()
        self._aligned = self._until_moved()
        self._samples.clear()  # began between two steps
        if not self._aligned:
            self._flags.append(
                f"{self.source}: the counter of {' and '.join(self.pulse)} stood still for "
                f"{STALL_S:.0f} s at the start; where that goes on, choose another source"
            )

    def _run(self) -> None:
        while not self._wait(self._stopping, self.period_s):
            self._poll()

    def _end(self) -> None:
        if self._last is not None and not self._until_moved():
            self._close_stalled(*self._last, *self._stamped())

    def _until_moved(self) -> bool:
        """Poll closely until a sample ends; false if the counters stand still."""
        begin_ns, never = self._clock(), threading.Event()
        while not self._poll():
            if self._clock() - begin_ns > STALL_S * NS_PER_S:
                return False
            self._wait(never, FINE_S)
        return True

    def _stamped(self) -> tuple[int, Reading]:
        """Stamped after reading: a counter's value is never newer than its stamp."""
        reading = self._read()
        return self._clock(), reading

    def _poll(self) -> bool:
        """Read; true if that ended a sample."""
        now_ns, now = self._stamped()
        if self._last is None:
            return False
        begin_ns, before = self._last
        if now_ns - begin_ns < FINE_S * NS_PER_S:
            return False
        if not all(now.joules[rail] != before.joules[rail] for rail in self.pulse):
            return False
        self._last = now_ns, now
        if not self._aligned:  # a counter that wakes up may release energy from long before
            self._aligned = True
            return True
        sample = Sample(
            begin_ns,
            now_ns,
            _growth(before.joules, now.joules),
            beside=_growth(before.beside, now.beside),
        )
        if _is_possible(sample):
            self._samples.append(sample)
        else:
            self._flags.append(
                f"{self.source}: a counter jumped, as after a reset; {_seconds(sample)} of samples "
                f"were thrown away: measure again"
            )
        return True

    def _close_stalled(self, begin_ns: int, before: Reading, end_ns: int, now: Reading) -> None:
        """Keep what the live rails say of a time in which the others stood still."""
        names = " and ".join(self.pulse)
        self._flags.append(
            f"{self.source}: the counter of {names} stood still for the last "
            f"{(end_ns - begin_ns) / NS_PER_S:.1f} s, where no total is known: measure again"
        )
        grown = {r: j for r, j in _growth(before.joules, now.joules).items() if r in self.live}
        sample = Sample(begin_ns, end_ns, grown)
        if grown and _is_possible(sample):
            self._samples.append(sample)

    def _guarded(self, work: Callable[[], None]) -> bool:
        """Run; a meter that breaks is a flag, never the end of the measurement around it."""
        try:
            work()
        except Exception as error:
            self._last = None
            self._flags.append(f"{self.source}: the counters could not be read any more: {error}")
            return False
        return True


def _growth(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    return {rail: now[rail] - before[rail] for rail in now if rail in before}


def _is_possible(sample: Sample) -> bool:
    """Whether no rail lost energy or used more than any machine can.

    A short sample may hold a whole step of the counter, so nothing is judged by less than 1 s.
    """
    limit_j = MAX_RAIL_W * max((sample.end_ns - sample.begin_ns) / NS_PER_S, 1.0)
    return all(0 <= energy_j <= limit_j for energy_j in sample.joules.values())


def _seconds(sample: Sample) -> str:
    return f"{(sample.end_ns - sample.begin_ns) / NS_PER_S:.1f} s"

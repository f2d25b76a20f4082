"""Meters that poll cumulative energy counters.

Counters are published in steps: RAPL's every millisecond, NVML's every 20 to 100 ms, IOReport's
on macOS 27 every two seconds. Samples that end at the reader's own ticks would be 0 W and then an
impossible spike. So a sample ends when the counters have moved: its energy and its time match,
and a longer step only makes a longer sample and hence a larger edge error.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edge.errors import EdgeError
from edge.power.meter import Meter, Sample

# macOS 27 publishes every 2.2 s. A counter that does not move for longer has failed.
STALL_S = 5.0
# Polling period while a step of the counters is awaited: at the start and at the end.
FINE_S = 0.02
# More than any rail uses: a counter that grows faster was reset.
MAX_RAIL_W = 10_000.0


@dataclass(frozen=True)
class Reading:
    """Joules since an arbitrary start; the rails are those of `Sample`."""

    joules: Mapping[str, float]
    beside: Mapping[str, float] = field(default_factory=dict)


class PollingMeter(Meter, ABC):
    """A meter whose thread reads counters; subclasses implement `_read`.

    A sample ends when all `pacing` rails have moved: those that always do while a machine is on.
    `live` rails stay valid while the others stall. Tests replace `clock_ns` and `wait`.
    """

    pacing: Sequence[str] = ()
    live: Sequence[str] = ()
    period_s = 0.25
    clock_ns = staticmethod(time.monotonic_ns)
    wait = staticmethod(threading.Event.wait)

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._polling = threading.Lock()
        self._last: tuple[int, Reading] | None = None
        self._aligned = True

    def start(self) -> None:
        """Begin sampling at a step of the counters, or after STALL_S without one."""
        self._samples, self.flags, self._last, self._aligned = [], (), None, True
        self._stopping = threading.Event()
        if self.unavailable is None and self._guarded(self._begin):
            self._thread = threading.Thread(target=self._guarded, args=(self._run,), daemon=True)
            self._thread.start()

    def read(self, since_ns: int) -> Sequence[Sample]:
        """Reads the counters once more, so that a sample ends now where they have moved."""
        with self._polling:
            self._guarded(self._poll)
            self._samples = [sample for sample in self._samples if sample.end_ns > since_ns]
            return tuple(self._samples)

    def stop(self) -> Sequence[Sample]:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._guarded(self._end)
        return tuple(self._samples)

    @abstractmethod
    def _read(self) -> Reading:
        """Read every counter; an exception ends sampling with a warning."""

    def _begin(self) -> None:
        self._last = self._stamped()
        self._aligned = self._poll_until_moved()
        self._samples.clear()  # it began between two steps
        if not self._aligned:
            self._warn_stalled(f"for {STALL_S:.0f} s at the start: choose another source")

    def _run(self) -> None:
        while not self.wait(self._stopping, self.period_s):
            with self._polling:
                self._poll()

    def _end(self) -> None:
        if self._last is not None and not self._poll_until_moved():
            self._close_stalled(*self._last)

    def _poll_until_moved(self) -> bool:
        """Poll closely until a sample ends; false if the counters do not move."""
        begin_ns = self.clock_ns()
        while not self._poll():
            if self.clock_ns() - begin_ns > STALL_S * 1e9:
                return False
            self.wait(threading.Event(), FINE_S)
        return True

    def _stamped(self) -> tuple[int, Reading]:
        """A reading and the time after it: a counter's value is never newer than its stamp."""
        reading = self._read()
        return self.clock_ns(), reading

    def _poll(self) -> bool:
        now_ns, now = self._stamped()
        if self._last is None:
            return False
        begin_ns, before = self._last
        moved = all(now.joules[rail] != before.joules[rail] for rail in self.pacing)
        if not moved or now_ns - begin_ns < FINE_S * 1e9:
            return False
        self._last = now_ns, now
        if not self._aligned:  # the first step after a stall may hold energy from long before
            self._aligned = True
            return True
        beside = _growth(before.beside, now.beside)
        sample = Sample(begin_ns, now_ns, _growth(before.joules, now.joules), beside=beside)
        if _is_possible(sample):
            self._samples.append(sample)
        else:
            gap_s = sample.length_ns / 1e9
            self._warn(f"a counter jumped, as after a reset; {gap_s:.1f} s are lost: measure again")
        return True

    def _close_stalled(self, begin_ns: int, before: Reading) -> None:
        """Keep the live rails of a time in which the others stalled."""
        end_ns, now = self._stamped()
        stalled_s = (end_ns - begin_ns) / 1e9
        self._warn_stalled(f"for the last {stalled_s:.1f} s, which have no total: measure again")
        growth = _growth(before.joules, now.joules)
        live = {rail: joules for rail, joules in growth.items() if rail in self.live}
        others = {rail: joules for rail, joules in growth.items() if rail not in live}
        sample = Sample(begin_ns, end_ns, live, beside=others)  # so that there is no total
        if sample.joules and _is_possible(sample):
            self._samples.append(sample)

    def _guarded(self, work: Callable[[], object]) -> bool:
        """Run; a failure is a warning, because a meter must not end the run it measures."""
        try:
            work()
        except Exception as error:
            self._last = None
            self._warn(f"the counters can no longer be read: {error}")
            return False
        return True

    def _warn_stalled(self, how: str) -> None:
        self._warn(f"the counter of {' and '.join(self.pacing)} did not move {how}")

    def _warn(self, sentence: str) -> None:
        self.flags = (*self.flags, f"{self.source}: {sentence}")


def reason_of(error: Exception, library: str) -> str:
    return str(error).rstrip(".") if isinstance(error, EdgeError) else f"{library} failed: {error}"


def _growth(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    return {rail: now[rail] - before[rail] for rail in now if rail in before}


def _is_possible(sample: Sample) -> bool:
    """False if a rail lost energy or used more than any machine can.

    A short sample may hold a whole step of the counter, so the limit is that of at least 1 s.
    """
    limit_j = MAX_RAIL_W * max(sample.length_ns / 1e9, 1.0)
    return all(0 <= energy_j <= limit_j for energy_j in sample.joules.values())

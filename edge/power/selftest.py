"""Self-test of a meter: a load must raise what it reads, and the end of the load lower it again."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

from edge.power.meter import Meter, Sample

# Several times what lies between two updates of counters on macOS 27, 2.2 s.
PHASE_S = 8.0
# Busy cores raise power by more than this: in standard deviations when idle, share, and watts.
NOISE, LEAST_SHARE, LEAST_W = 4.0, 0.05, 0.2
TOTAL = "total"


@dataclass(frozen=True)
class RailTest:
    """Mean watts of a rail before, under and after a load; `problem` is None if it follows."""

    rail: str
    idle_w: float | None
    load_w: float | None
    rest_w: float | None
    problem: str | None


@dataclass(frozen=True)
class MeterTest:
    """The test of one meter; `flags` are its own warnings."""

    source: str
    rails: list[RailTest]
    flags: Sequence[str]

    @property
    def moves(self) -> bool:
        return all(rail.problem is None for rail in self.rails)


def self_test(
    meter: Meter,
    rails: Sequence[str],
    load: Callable[[], AbstractContextManager[None]],
    wait: Callable[[float], None] = time.sleep,
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> MeterTest:
    """Measures three phases of PHASE_S: idle, under load, and after it.

    `rails` are those that the load uses, or TOTAL for the sum of all.
    """
    meter.start()
    try:
        stamps_ns = [clock_ns()]
        wait(PHASE_S)
        stamps_ns.append(clock_ns())
        with load():
            wait(PHASE_S)
            stamps_ns.append(clock_ns())
        wait(PHASE_S)
        stamps_ns.append(clock_ns())
    finally:
        samples = meter.stop()
    tests = [_test(rail, samples, list(pairwise(stamps_ns))) for rail in rails]
    return MeterTest(meter.source, tests, meter.flags)


def _test(rail: str, samples: Sequence[Sample], phases: Sequence[tuple[int, int]]) -> RailTest:
    powers_w = [_powers_w(rail, samples, *phase) for phase in phases]
    if not all(powers_w):
        return RailTest(rail, None, None, None, "no energy was counted")
    idle_w, load_w, rest_w = map(statistics.fmean, powers_w)
    noise_w = statistics.stdev(powers_w[0]) if len(powers_w[0]) > 1 else 0.0
    problem, rise_w = None, load_w - idle_w
    if rise_w < max(NOISE * noise_w, LEAST_SHARE * idle_w, LEAST_W):
        problem = "it does not move under load"
    elif rest_w - idle_w > rise_w / 2:
        problem = "it goes on after the load"
    return RailTest(rail, idle_w, load_w, rest_w, problem)


def _powers_w(rail: str, samples: Sequence[Sample], begin_ns: int, end_ns: int) -> list[float]:
    """Watts of the samples wholly inside a phase: others are of two."""
    return [
        (sum(s.joules.values()) if rail == TOTAL else s.joules[rail]) / s.length_ns * 1e9
        for s in samples
        if begin_ns <= s.begin_ns < s.end_ns <= end_ns and (rail == TOTAL or rail in s.joules)
    ]

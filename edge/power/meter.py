"""What every power source looks like, and the one way its samples become joules."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edge.device.state import THERMAL_LEVELS


@dataclass(frozen=True)
class Sample:
    """Energy between two moments of `time.monotonic_ns()`, in joules per rail.

    The rails of `joules` add up to the meter's boundary. Those of `beside` are shown and
    never added: they overlap others (a core inside its package).
    `thermal` is the pressure at the end of the sample, one of THERMAL_LEVELS or one that
    nobody knows, None where the source has none.
    """

    begin_ns: int
    end_ns: int
    joules: Mapping[str, float]
    thermal: str | None = None
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean_w(self) -> float:
        """Mean power over the rails that add up, in watts."""
        return sum(self.joules.values()) / (self.end_ns - self.begin_ns) * 1e9


@dataclass(frozen=True)
class Energy:
    """Energy inside a window.

    `coverage` is the fraction of the window that samples cover; below 1 the joules are of
    the covered part only. `edge_error_j` bounds what the two edges can have misplaced.
    """

    joules: Mapping[str, float]
    coverage: float
    edge_error_j: float = 0.0
    thermal_worst: str | None = None
    records: int = 0
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def total_j(self) -> float:
        """Sum over the rails that add up."""
        return sum(self.joules.values())

    @property
    def is_total(self) -> bool:
        """False where the CPU's counter failed, so that `total_j` is of the GPU alone."""
        return "CPU" in self.joules or "CPU" not in self.beside


class Meter(Protocol):
    """A source of power samples. Its constructor never raises.

    `boundary` says in words what the rails cover and leave out. `unavailable` is None for a
    meter that works here, else the sentence that explains every missing watt. `flags` are
    sentences about doubts, complete after `stop`. Samples that `stop` returns are in order
    and do not overlap.
    """

    @property
    def source(self) -> str:
        """The meter's name, as `--source` spells it; a stand-in says that it is one."""

    @property
    def boundary(self) -> str:
        """What the rails cover and what they leave out."""

    @property
    def unavailable(self) -> str | None:
        """Why there is no sample, if so."""

    @property
    def flags(self) -> Sequence[str]:
        """Doubts about the samples, a sentence each."""

    def start(self) -> None:
        """Begin sampling; returns when the first sample can be trusted. Never raises."""

    def stop(self) -> Sequence[Sample]:
        """End sampling; everything since `start`. Never raises."""


def integrate(
    samples: Sequence[Sample], begin_ns: int, end_ns: int, clock_error_ns: int = 0
) -> Energy:
    """Energy between two stamps: the sum of joules x overlap over the samples.

    A sample that straddles an edge counts in proportion to the part inside: within a sample
    the power is taken as constant.

    Args:
        samples: in order, not overlapping.
        begin_ns: the window's begin.
        end_ns: the window's end.
        clock_error_ns: how far the samples' stamps may be off.

    Raises:
        ValueError: the window is empty.
    """
    if end_ns <= begin_ns:
        raise ValueError("an energy window must end after it begins")
    # Those that end after the begin and begin before the end.
    first = bisect_right(samples, begin_ns, key=lambda s: s.end_ns)
    last = bisect_left(samples, end_ns, key=lambda s: s.begin_ns)
    inside = [s for s in samples[first:last] if s.end_ns > s.begin_ns]
    joules: dict[str, float] = {}
    beside: dict[str, float] = {}
    covered_ns = 0
    for sample in inside:
        overlap_ns = min(end_ns, sample.end_ns) - max(begin_ns, sample.begin_ns)
        covered_ns += overlap_ns
        share = overlap_ns / (sample.end_ns - sample.begin_ns)
        _add(joules, sample.joules, share)
        _add(beside, sample.beside, share)
    return Energy(
        joules=joules,
        coverage=covered_ns / (end_ns - begin_ns),
        edge_error_j=sum(_edge_error_j(samples, at, clock_error_ns) for at in (begin_ns, end_ns)),
        thermal_worst=worst_thermal([s.thermal for s in inside]),
        records=len(inside),
        beside=beside,
    )


def worst_thermal(levels: Sequence[str | None]) -> str | None:
    """The worst pressure level; one that nobody knows is worse than all, so that it shows."""
    known = [level for level in levels if level is not None]
    rank = {level: place for place, level in enumerate(THERMAL_LEVELS)}
    return max(known, key=lambda level: rank.get(level, len(rank)), default=None)


def _add(total: dict[str, float], joules: Mapping[str, float], share: float) -> None:
    for rail, energy_j in joules.items():
        total[rail] = total.get(rail, 0.0) + energy_j * share


def _edge_error_j(samples: Sequence[Sample], edge_ns: int, clock_error_ns: int) -> float:
    """What an edge can have misplaced: (straddled interval + clock error) x change of power.

    The change of power is that from the sample before the straddled one to the one after it;
    where one of them is missing, all that the straddled sample holds may lie on either side.
    """
    place = bisect_left(samples, edge_ns, key=lambda s: s.end_ns)
    if place == len(samples) or samples[place].begin_ns > edge_ns:
        return 0.0  # no sample here: the coverage says so
    sample = samples[place]
    length_ns = sample.end_ns - sample.begin_ns
    straddles = sample.begin_ns < edge_ns < sample.end_ns
    interval_ns = (length_ns if straddles else 0) + clock_error_ns
    if interval_ns == 0:
        return 0.0
    if 0 < place < len(samples) - 1:
        change_w = abs(samples[place + 1].mean_w - samples[place - 1].mean_w)
        # A burst inside the straddled sample stands in neither neighbour.
        burst_w = max(abs(sample.mean_w - samples[place + side].mean_w) for side in (-1, 1))
        return interval_ns * max(change_w, burst_w) / 1e9
    return interval_ns * sample.mean_w / 1e9

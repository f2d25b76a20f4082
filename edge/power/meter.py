"""What every power source looks like, and the one way its samples become joules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sample:
    """Energy between two moments of `time.monotonic_ns()`, in joules per rail."""

    begin_ns: int
    end_ns: int
    joules: Mapping[str, float]


@dataclass(frozen=True)
class Energy:
    """Energy inside a window.

    `coverage` is the fraction of the window that samples cover; below 1 the joules are of
    the covered part only.
    """

    joules: Mapping[str, float]
    coverage: float

    @property
    def total_j(self) -> float:
        """Sum over the rails."""
        return sum(self.joules.values())


class Meter(Protocol):
    """A source of power samples.

    `unavailable` is None for a meter that works here, else the sentence that explains every
    missing watt. Samples that `stop` returns are in order and do not overlap.
    """

    source: str
    unavailable: str | None

    def start(self) -> None:
        """Begin sampling; returns when the first sample can be trusted."""

    def stop(self) -> Sequence[Sample]:
        """End sampling; everything since `start`."""


def integrate(samples: Sequence[Sample], begin_ns: int, end_ns: int) -> Energy:
    """Energy between two stamps: the sum of joules x overlap over the samples.

    A sample that straddles an edge counts in proportion to the part inside: within a sample
    the power is taken as constant, which bounds the error by one sample per edge.

    Raises:
        ValueError: the window is empty.
    """
    if end_ns <= begin_ns:
        raise ValueError("an energy window must end after it begins")
    joules: dict[str, float] = {}
    covered_ns = 0
    for sample in samples:
        overlap_ns = min(end_ns, sample.end_ns) - max(begin_ns, sample.begin_ns)
        if overlap_ns <= 0:
            continue
        covered_ns += overlap_ns
        share = overlap_ns / (sample.end_ns - sample.begin_ns)
        for rail, energy_j in sample.joules.items():
            joules[rail] = joules.get(rail, 0.0) + energy_j * share
    return Energy(joules, covered_ns / (end_ns - begin_ns))

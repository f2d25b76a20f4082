"""The protocol of power meters, and the integration of their samples to joules."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edge.device.state import THERMAL_LEVELS


@dataclass(frozen=True)
class Sample:
    """Energy between two moments of `time.monotonic_ns()`, in joules per rail.

    The rails of `joules` add up to the meter's boundary. Those of `beside` overlap them (a core
    inside its package) and are never added. `thermal` is the pressure at the end of the sample,
    one of THERMAL_LEVELS or an unknown word; None where the source has none.
    """

    begin_ns: int
    end_ns: int
    joules: Mapping[str, float]
    thermal: str | None = None
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def length_ns(self) -> int:
        return self.end_ns - self.begin_ns

    @property
    def mean_w(self) -> float:
        """Mean power over the rails that add up, in watts."""
        return sum(self.joules.values()) / self.length_ns * 1e9


@dataclass(frozen=True)
class Energy:
    """Energy inside a window.

    `coverage` is the fraction of the window that samples cover; the joules are of that part only.
    `edge_error_j` bounds the error from samples that straddle the window's edges.
    """

    joules: Mapping[str, float]
    coverage: float
    edge_error_j: float = 0.0
    thermal_worst: str | None = None
    records: int = 0
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def total_j(self) -> float:
        return sum(self.joules.values())

    @property
    def is_total(self) -> bool:
        """False where the CPU's counter failed: then some of `total_j` is of the GPU alone."""
        return "CPU" not in self.beside


class Meter:
    """A source of power samples. Neither the constructor nor a method of a subclass raises.

    `source` is its name in `--source`. `boundary` says what the rails cover and leave out.
    `unavailable` is the reason why it does not work here, or None. `flags` are warnings about the
    samples, complete after `stop`.
    """

    source = "none"
    boundary = "nothing"
    unavailable: str | None = None
    flags: Sequence[str] = ()

    def start(self) -> None:
        """Begin sampling; returns when power is being measured."""

    def read(self, since_ns: int) -> Sequence[Sample]:
        """The samples so far that end after a stamp, while sampling goes on; forgets the older."""
        return ()

    def stop(self) -> Sequence[Sample]:
        """End sampling; the samples since `start` in order, without overlap."""
        return ()


def integrate(samples: Sequence[Sample], begin_ns: int, end_ns: int) -> Energy:
    """Energy between two stamps, with constant power within each sample."""
    if end_ns <= begin_ns:
        raise ValueError("an energy window must end after it begins")
    first = bisect_right(samples, begin_ns, key=lambda s: s.end_ns)
    last = bisect_left(samples, end_ns, key=lambda s: s.begin_ns)
    inside = [sample for sample in samples[first:last] if sample.length_ns > 0]
    joules: dict[str, float] = {}
    beside: dict[str, float] = {}
    covered_ns = 0
    for sample in inside:
        overlap_ns = min(end_ns, sample.end_ns) - max(begin_ns, sample.begin_ns)
        covered_ns += overlap_ns
        share = overlap_ns / sample.length_ns
        for total_j, sample_j in ((joules, sample.joules), (beside, sample.beside)):
            for rail, energy_j in sample_j.items():
                total_j[rail] = total_j.get(rail, 0.0) + energy_j * share
    return Energy(
        joules=joules,
        coverage=covered_ns / (end_ns - begin_ns),
        edge_error_j=sum(_edge_error_j(samples, at) for at in (begin_ns, end_ns)),
        thermal_worst=worst_thermal([s.thermal for s in inside]),
        records=len(inside),
        beside=beside,
    )


def worst_thermal(levels: Sequence[str | None]) -> str | None:
    """The worst pressure level; an unknown word counts as worse than all known ones."""
    rank = {level: place for place, level in enumerate(THERMAL_LEVELS)}
    return max(filter(None, levels), key=lambda level: rank.get(level, len(rank)), default=None)


def _edge_error_j(samples: Sequence[Sample], edge_ns: int) -> float:
    """Largest error from a sample that straddles an edge: its duration x the change of power.

    The change is the range over it and its two neighbours. Where one of them is missing, all of
    its energy may belong to either side.
    """
    place = bisect_left(samples, edge_ns, key=lambda s: s.end_ns)
    if place == len(samples) or not samples[place].begin_ns < edge_ns < samples[place].end_ns:
        return 0.0
    sample = samples[place]
    if not 0 < place < len(samples) - 1:
        return sample.mean_w * sample.length_ns / 1e9
    # With the sample's own power: a burst inside it is in neither neighbour.
    powers_w = [s.mean_w for s in samples[place - 1 : place + 2]]
    return (max(powers_w) - min(powers_w)) * sample.length_ns / 1e9

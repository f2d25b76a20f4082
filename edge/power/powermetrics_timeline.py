"""From records to samples: where each lies in time, and what to doubt about them.

powermetrics' intervals are contiguous, so cumulative elapsed time tells where records lie to
one another, exactly. Where they lie on our clock is known only through stamps that come late
(their arrival) or are cut short (whole seconds); the smallest lag is the truest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from edge.power.meter import Sample, worst_thermal
from edge.power.powermetrics_record import Record

SECOND_NS = 10**9
# On macOS 27.0 the CPU's counter moves every 2.2 s; on its betas it stood still under load.
STALL_NS = 5 * SECOND_NS
MAX_DIFFERENCE, MAX_DIFFERENCE_NS = 0.02, SECOND_NS


@dataclass(frozen=True)
class Timeline:
    """Samples in order, their boundary in words, and doubts, a sentence each."""

    samples: Sequence[Sample]
    boundary: str
    flags: Sequence[str] = ()


def build_timeline(
    records: Sequence[Record],
    stamps_ns: Sequence[int] | None,
    gap_ns: int,
    complaints: Sequence[str] = (),
    after_loss_ns: int | None = None,
) -> Timeline:
    """Place records on a clock.

    Args:
        records: in the order in which they came.
        stamps_ns: for each record a moment of that clock, not before the record's end by more
            than a constant; None to put them end to end from 0.
        gap_ns: how far the stamps of contiguous records can vary.
        complaints: why records are missing, a few words for each that is.
        after_loss_ns: the same where a record is known to be missing; None for `gap_ns`.
    """
    flags = [_sentence(words, n) for words, n in Counter(complaints).items()]
    samples, clock_flags = _place(
        records, stamps_ns, gap_ns, gap_ns if after_loss_ns is None else after_loss_ns
    )
    samples, boundary, cpu_flags = _judge_cpu(samples)
    return Timeline(samples, boundary, (*flags, *clock_flags, *cpu_flags))


def describe_boundary(rails: Sequence[str]) -> str:
    """What the rails cover and leave out, in words."""
    if "CPU" not in rails:
        return f"{' + '.join(rails) or 'nothing'} of the SoC only: not a total"
    without = "" if "DRAM" in rails else "DRAM, "
    return f"{' + '.join(rails)} of the SoC, without {without}display and everything else"


def _sentence(words: str, count: int) -> str:
    records = "1 record was" if count == 1 else f"{count} records were"
    return f"{records} not counted: {words}"


def _place(
    records: Sequence[Record], stamps_ns: Sequence[int] | None, gap_ns: int, after_loss_ns: int
) -> tuple[list[Sample], list[str]]:
    ends_ns = list(accumulate(r.elapsed_ns for r in records))
    if stamps_ns is None or not records:
        return _samples(records, ends_ns), []
    lags_ns = [stamp - end for stamp, end in zip(stamps_ns, ends_ns, strict=True)]
    # A late stamp raises one lag, lost time all that follow: the minimum of what follows tells
    # them apart, and never moves a record before its predecessor.
    floors_ns = list(accumulate(reversed(lags_ns), min))[::-1]
    offset_ns, lost_ns, placed_ns = floors_ns[0], 0, []
    for record, end_ns, floor_ns in zip(records, ends_ns, floors_ns, strict=True):
        if floor_ns - offset_ns > (after_loss_ns if record.follows_loss else gap_ns):
            lost_ns += floor_ns - offset_ns
            offset_ns = floor_ns
        placed_ns.append(end_ns + offset_ns)
    # Time that the records claim and the clock never had: it was set back, or slept.
    invented_ns = max(0, min(lags_ns[: len(lags_ns) // 4 + 1]) - floors_ns[-1])
    tolerated_ns = max(gap_ns, min(MAX_DIFFERENCE_NS, int(MAX_DIFFERENCE * ends_ns[-1])))
    return _samples(records, placed_ns), _clock_flags(lost_ns, invented_ns, tolerated_ns)


def _samples(records: Sequence[Record], ends_ns: Sequence[int]) -> list[Sample]:
    return [
        Sample(end_ns - r.elapsed_ns, end_ns, r.joules, r.thermal, r.beside)
        for r, end_ns in zip(records, ends_ns, strict=True)
    ]


def _clock_flags(lost_ns: int, invented_ns: int, tolerated_ns: int) -> list[str]:
    flags = []
    if lost_ns > tolerated_ns:
        flags.append(f"{lost_ns / 1e9:.1f} s are missing between records")
    if invented_ns > tolerated_ns:
        flags.append(
            f"the records claim {invented_ns / 1e9:.1f} s more than passed on the clock: the "
            "machine slept, its clock was set, or records stand out of order"
        )
    return flags


def _judge_cpu(samples: list[Sample]) -> tuple[list[Sample], str, list[str]]:
    """Leave a CPU counter that stands still out of the total; spread one that comes in batches."""
    rails = list(dict.fromkeys(rail for s in samples for rail in s.joules))
    stalled_ns = _longest_zero_ns(samples)
    if stalled_ns > STALL_NS:
        gpu_only = [_gpu_only(s) for s in samples]
        flag = (
            f"CPU counter stalled: it stood at 0 for {stalled_ns / 1e9:.1f} s, so the energy is "
            "of the GPU only and no total; update macOS"
        )
        return gpu_only, describe_boundary(["GPU"] if "GPU" in rails else []), [flag]
    merged = _merge_batches(samples)
    return merged, describe_boundary(rails), _tail_flags(merged)


def _is_zero(sample: Sample) -> bool:
    """An interval in which no CPU energy was published; a running CPU uses some."""
    return sample.joules.get("CPU") == 0


def _longest_zero_ns(samples: Sequence[Sample]) -> int:
    longest_ns, begin_ns = 0, None
    for sample in samples:
        if not _is_zero(sample):
            begin_ns = None
            continue
        begin_ns = sample.begin_ns if begin_ns is None else begin_ns
        longest_ns = max(longest_ns, sample.end_ns - begin_ns)
    return longest_ns


def _gpu_only(sample: Sample) -> Sample:
    joules = {rail: j for rail, j in sample.joules.items() if rail == "GPU"}
    rest = {rail: j for rail, j in sample.joules.items() if rail != "GPU"}
    return replace(sample, joules=joules, beside={**sample.beside, **rest})


def _merge_batches(samples: Sequence[Sample]) -> list[Sample]:
    """Join samples without CPU energy with the one that brings it.

    What a batch holds was used since the batch before: as one sample its energy is spread
    over that time, and the edge error is of that length.
    """
    merged: list[Sample] = []
    for sample in samples:
        previous = merged[-1] if merged else None
        if previous and _is_zero(previous) and previous.end_ns == sample.begin_ns:
            merged[-1] = _join(previous, sample)
        else:
            merged.append(sample)
    return merged


def _join(first: Sample, second: Sample) -> Sample:
    def both(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
        return {rail: a.get(rail, 0.0) + b.get(rail, 0.0) for rail in {**a, **b}}

    return Sample(
        first.begin_ns,
        second.end_ns,
        both(dict(first.joules), dict(second.joules)),
        worst_thermal([first.thermal, second.thermal]),
        both(dict(first.beside), dict(second.beside)),
    )


def _tail_flags(merged: Sequence[Sample]) -> list[str]:
    if not merged or not _is_zero(merged[-1]):
        return []
    tail_s = (merged[-1].end_ns - merged[-1].begin_ns) / 1e9
    return [f"the CPU counter did not move in the last {tail_s:.1f} s, so their energy is low"]

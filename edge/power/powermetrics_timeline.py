"""From records to samples: where each lies in time, and warnings about them; recorded logs.

powermetrics' intervals are contiguous, so cumulative elapsed time places the records exactly
relative to one another. Where they lie on our clock is known only through stamps that come late
(their arrival) or are cut to whole seconds; the smallest lag is the truest.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from pathlib import Path

from edge.errors import EdgeError
from edge.power.meter import Sample, worst_thermal
from edge.power.powermetrics_record import Record, RecordStream

SECOND_NS = 10**9
# On macOS 27.0 the CPU's counter moves every 2.2 s; on its betas it stood still under load.
STALL_NS = 5 * SECOND_NS
MAX_DIFFERENCE, MAX_DIFFERENCE_NS = 0.02, SECOND_NS
# A week of records twice a second would be 10 GB.
MAX_LOG_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
# powermetrics cuts its stamps to whole seconds: those of contiguous records vary by this much.
LOG_GAP_NS = SECOND_NS + 2 * 10**8


@dataclass(frozen=True)
class Timeline:
    """Samples in order, their boundary in words, and warnings, a sentence each."""

    samples: Sequence[Sample]
    boundary: str
    flags: Sequence[str] = ()


def build_timeline(
    records: Sequence[Record],
    stamps_ns: Sequence[int] | None,
    gap_ns: int,
    complaints: Sequence[str] = (),
) -> Timeline:
    """Place records on the clock of `stamps_ns`, one for each record; None: end to end from 0.

    The stamps of contiguous records can vary by `gap_ns`. `complaints` say why some are missing.
    """
    ends_ns = list(accumulate(record.elapsed_ns for record in records))
    flags = [
        f"{count} record{' was' if count == 1 else 's were'} not counted: {words}"
        for words, count in Counter(complaints).items()
    ]
    if stamps_ns and records:
        ends_ns, clock_flags = _place(ends_ns, stamps_ns, gap_ns)
        flags += clock_flags
    samples = [
        Sample(end_ns - r.elapsed_ns, end_ns, r.joules, r.thermal, r.beside)
        for r, end_ns in zip(records, ends_ns, strict=True)
    ]
    samples, boundary, cpu_flags = _judge_cpu(samples)
    return Timeline(samples, boundary, (*flags, *cpu_flags))


def read_log(path: Path) -> Timeline:
    """A log of `powermetrics -f plist`, on a clock that begins with its first record.

    Raises:
        EdgeError: it cannot be read, or holds no energy.
    """
    stream = RecordStream()
    try:
        records = _read_records(path, stream)
    except OSError as error:
        raise EdgeError(f"The power log {path} cannot be read: {error.strerror}.") from error
    if not records:
        why = stream.complaints[0] if stream.complaints else "no record"
        raise EdgeError(
            f"The power log {path} holds no energy ({why}): record it with `sudo powermetrics -f "
            "plist -i 500 --samplers cpu_power,gpu_power,thermal -o FILE`."
        )
    stamps_ns = [int(r.ended.timestamp()) * SECOND_NS for r in records if r.ended is not None]
    whole_ns = stamps_ns if len(stamps_ns) == len(records) else None
    timeline = build_timeline(records, whole_ns, LOG_GAP_NS, stream.complaints)
    zero_ns = timeline.samples[0].begin_ns
    samples = [
        replace(sample, begin_ns=sample.begin_ns - zero_ns, end_ns=sample.end_ns - zero_ns)
        for sample in timeline.samples
    ]
    return replace(timeline, samples=samples)


def _read_records(path: Path, stream: RecordStream) -> list[Record]:
    if path.stat().st_size > MAX_LOG_BYTES:
        raise OSError(0, "too large for a power log")
    records: list[Record] = []
    with path.open("rb") as log:
        while chunk := log.read(CHUNK_BYTES):
            records += stream.feed(chunk)
    stream.finish()
    return records


def describe_boundary(rails: Sequence[str]) -> str:
    """Rails that are covered and those that are left out, in words."""
    if "CPU" not in rails:
        return f"{' + '.join(rails) or 'nothing'} of the SoC only: not a total"
    without = "" if "DRAM" in rails else "DRAM, "
    return f"{' + '.join(rails)} of the SoC, without {without}display and everything else"


def _place(
    ends_ns: Sequence[int], stamps_ns: Sequence[int], gap_ns: int
) -> tuple[list[int], list[str]]:
    """Ends on the clock of the stamps, and warnings about lost and invented time."""
    lags_ns = [stamp - end for stamp, end in zip(stamps_ns, ends_ns, strict=True)]
    # A late stamp raises one lag, lost time all that follow: the minimum of what follows tells
    # them apart, and never moves a record before its predecessor.
    floors_ns = list(accumulate(reversed(lags_ns), min))[::-1]
    offset_ns, lost_ns, placed_ns = floors_ns[0], 0, []
    for end_ns, floor_ns in zip(ends_ns, floors_ns, strict=True):
        if floor_ns - offset_ns > gap_ns:
            lost_ns += floor_ns - offset_ns
            offset_ns = floor_ns
        placed_ns.append(end_ns + offset_ns)
    # Time that the records claim and the clock never had: it was set back, or slept.
    invented_ns = max(0, min(lags_ns[: len(lags_ns) // 4 + 1]) - floors_ns[-1])
    tolerated_ns = max(gap_ns, min(MAX_DIFFERENCE_NS, int(MAX_DIFFERENCE * ends_ns[-1])))
    flags = []
    if lost_ns > tolerated_ns:
        flags.append(f"{lost_ns / 1e9:.1f} s are missing between records")
    if invented_ns > tolerated_ns:
        flags.append(
            f"the records claim {invented_ns / 1e9:.1f} s more than passed on the clock: it was "
            "set, the machine slept, or records are out of order"
        )
    return placed_ns, flags


def _judge_cpu(samples: list[Sample]) -> tuple[list[Sample], str, list[str]]:
    """Leave a CPU counter that stands still out of the total; spread one that comes in batches."""
    rails = list(dict.fromkeys(rail for sample in samples for rail in sample.joules))
    stalled_ns = _longest_zero_ns(samples)
    if stalled_ns > STALL_NS:
        flag = (
            f"CPU counter stalled: it stood at 0 for {stalled_ns / 1e9:.1f} s, so the energy is "
            "of the GPU only and no total; update macOS"
        )
        boundary = describe_boundary(["GPU"] if "GPU" in rails else [])
        return [_gpu_only(sample) for sample in samples], boundary, [flag]
    merged, flags = _merge_batches(samples), []
    if merged and _is_zero(merged[-1]):
        tail_s = merged[-1].length_ns / 1e9
        flags.append(f"the CPU counter did not move in the last {tail_s:.1f} s: too few joules")
    return merged, describe_boundary(rails), flags


def _is_zero(sample: Sample) -> bool:
    """No CPU energy was published in this interval; a running CPU uses some."""
    return sample.joules.get("CPU") == 0


def _longest_zero_ns(samples: Sequence[Sample]) -> int:
    runs = [list(run) for is_zero, run in groupby(samples, _is_zero) if is_zero]
    return max((run[-1].end_ns - run[0].begin_ns for run in runs), default=0)


def _gpu_only(sample: Sample) -> Sample:
    joules = dict(sample.joules)
    gpu = {"GPU": joules.pop("GPU")} if "GPU" in joules else {}
    return replace(sample, joules=gpu, beside={**sample.beside, **joules})


def _merge_batches(samples: Sequence[Sample]) -> list[Sample]:
    """Join samples without CPU energy with the one that brings it: the time it was used in."""
    merged: list[Sample] = []
    for sample in samples:
        if merged and _is_zero(merged[-1]) and merged[-1].end_ns == sample.begin_ns:
            merged[-1] = _join(merged[-1], sample)
        else:
            merged.append(sample)
    return merged


def _join(first: Sample, second: Sample) -> Sample:
    def both(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
        return {rail: a.get(rail, 0.0) + b.get(rail, 0.0) for rail in {**a, **b}}

    joules, beside = both(first.joules, second.joules), both(first.beside, second.beside)
    thermal = worst_thermal([first.thermal, second.thermal])
    return Sample(first.begin_ns, second.end_ns, joules, thermal, beside)

"""Records of powermetrics: cut out of its stream, checked, placed in time; recorded logs.

Intervals are contiguous, so cumulative elapsed time places the records exactly relative to one
another. Their place on our clock is known only from stamps that come late (arrival) or are cut to
whole seconds (the tool's own). The smallest lag is the most accurate.
"""

import plistlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from statistics import median_low
from typing import Any

from edge.errors import EdgeError
from edge.formats.files import open_file
from edge.power.meter import Sample, worst_thermal

# The rails of the total, by the prefix of their keys; DRAM on macOS 12 and older.
RAILS = {"cpu": "CPU", "gpu": "GPU", "ane": "ANE", "dram": "DRAM"}
BESIDE = {"package": "Package"}  # on macOS 12 and older: all of these and more
MAX_W = 1000.0
MAX_ELAPSED_NS = 24 * 3600 * 10**9
END = b"</plist>"
# Six clusters of an M2 Ultra make 76 kB.
MAX_RECORD_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20
MAX_JUNK_BYTES = 16 << 20  # before the first record of a log

SECOND_NS = 10**9
# On macOS 27.0 the CPU's counter moves every 2.2 s; on its betas it stayed at 0 under load.
STALL_NS = 5 * SECOND_NS
MAX_DIFFERENCE, MAX_DIFFERENCE_NS = 0.02, SECOND_NS
# powermetrics cuts its stamps to whole seconds: those of contiguous records vary by this much.
LOG_GAP_NS = SECOND_NS + 2 * 10**8


# An interval that is longer than the typical one by more has a wrong length.
MOST_TYPICAL = 20


class BadRecordError(ValueError):
    """The reason, in a few words, why a record is rejected; `elapsed_ns` is its time, 0 if unknown.

    None for a record of no interval.
    """

    def __init__(self, reason: str, elapsed_ns: int | None = 0) -> None:
        super().__init__(reason)
        self.elapsed_ns = elapsed_ns


@dataclass(frozen=True)
class Rejected:
    """A part of a stream that is not counted, behind `after` good records.

    A record that is not believable is missing time: `elapsed_ns`, 0 if its length is unknown, None
    if the part is no record.
    """

    reason: str
    after: int = 0
    elapsed_ns: int | None = None


@dataclass(frozen=True)
class Record:
    """Energy of one interval; `ended` is the tool's own stamp, cut to whole seconds."""

    elapsed_ns: int
    joules: Mapping[str, float]
    beside: Mapping[str, float] = field(default_factory=dict)
    thermal: str | None = None
    ended: datetime | None = None


class RecordStream:
    """Bytes in, checked records out; `rejected` has each part that was left out.

    A NUL precedes every record but the first. Waiting for it instead of `</plist>` would deliver
    each record one interval late.
    """

    def __init__(self) -> None:
        self.rejected: list[Rejected] = []
        self._buffer = bytearray()
        self._seen: set[int] = set()
        self._good = 0

    def feed(self, chunk: bytes) -> list[Record]:
        unscanned = max(0, len(self._buffer) - len(END) + 1)
        self._buffer += chunk
        records = []
        while (end := self._buffer.find(END, unscanned)) >= 0:
            frame = bytes(self._buffer[: end + len(END)])
            del self._buffer[: end + len(END)]
            unscanned = 0
            if (record := self._read(frame)) is not None:
                records.append(record)
        if len(self._buffer) > MAX_RECORD_BYTES:
            self.finish()
        return records

    def finish(self) -> None:
        """Discard what is left: a truncated tail."""
        self._discard(bytes(self._buffer))
        self._buffer.clear()

    def _read(self, frame: bytes) -> Record | None:
        """Read a frame from its last header on; an earlier header began a truncated record."""
        begin = frame.rfind(b"<?xml")
        if begin < 0 or len(frame) - begin > MAX_RECORD_BYTES:
            self._discard(frame)
            return None
        self._discard(frame[:begin])
        data = frame[begin:]
        try:
            record = read_record(data)
        except BadRecordError as error:
            self._reject(str(error), error.elapsed_ns)
            return None
        # Two intervals never agree in every counter to the nanosecond.
        if hash(data) in self._seen:
            self._reject("the same record twice", None)
            return None
        self._seen.add(hash(data))
        self._good += 1
        return record

    def _discard(self, junk: bytes) -> None:
        if junk.strip(b"\0 \t\r\n"):
            self._reject("cut off or not a record", 0 if b"<?xml" in junk else None)

    def _reject(self, reason: str, elapsed_ns: int | None) -> None:
        self.rejected.append(Rejected(reason, self._good, elapsed_ns))


def read_record(data: bytes) -> Record:
    """Read and check one record.

    Raises:
        BadRecordError: it is broken, or its values are impossible.
    """
    try:
        document = plistlib.loads(data, fmt=plistlib.FMT_XML)
    except Exception as error:  # plistlib documents none for untrusted bytes
        raise BadRecordError("broken XML") from error
    if not isinstance(document, dict):
        raise BadRecordError("no dictionary")
    if document.get("is_delta") is False:
        raise BadRecordError("a total since boot", None)
    elapsed_ns = document.get("elapsed_ns")
    if type(elapsed_ns) is not int or not 0 < elapsed_ns < MAX_ELAPSED_NS:
        raise BadRecordError("no elapsed_ns")
    # Not document["gpu"]: it covers another interval than elapsed_ns, so its energy differs.
    processor = document.get("processor")
    if not isinstance(processor, dict):
        reason = "no processor: powermetrics ran without the cpu_power sampler"
        raise BadRecordError(reason, elapsed_ns)
    if "cpu_energy" not in processor:
        raise BadRecordError("no cpu_energy", elapsed_ns)
    thermal, ended = document.get("thermal_pressure"), document.get("timestamp")
    return Record(
        elapsed_ns=elapsed_ns,
        joules=_joules(processor, RAILS, elapsed_ns),
        beside=_joules(processor, BESIDE, elapsed_ns),
        # In lower case, as THERMAL_LEVELS has it.
        thermal=thermal[:64].lower() or None if isinstance(thermal, str) else None,
        ended=ended.replace(tzinfo=UTC) if isinstance(ended, datetime) else None,
    )


def _joules(
    processor: Mapping[str, Any], rails: Mapping[str, str], elapsed_ns: int
) -> dict[str, float]:
    """Joules of the rails that a record has, if a computer can have used them."""
    joules = {}
    for key, rail in rails.items():
        energy_mj = processor.get(f"{key}_energy", 0)
        if isinstance(energy_mj, bool) or not isinstance(energy_mj, int | float):
            raise BadRecordError(f"no {key}_energy", elapsed_ns)
        # Another unit would be a thousand times as much. NaN is outside the range too.
        if not 0 <= energy_mj < MAX_W * elapsed_ns / 1e6:
            raise BadRecordError(f"{key}_energy is not of 0 to {MAX_W:.0f} W", elapsed_ns)
        if f"{key}_energy" in processor:
            joules[rail] = energy_mj / 1e3
    return joules


@dataclass(frozen=True)
class Timeline:
    """Samples in order, their boundary in words, and warnings, a sentence each.

    Time that is missing before the first and after the last sample is in `begin_ns` and `end_ns`.
    """

    samples: Sequence[Sample]
    boundary: str
    flags: Sequence[str] = ()
    begin_ns: int = 0
    end_ns: int = 0


def build_timeline(
    records: Sequence[Record],
    stamps_ns: Sequence[int] | None,
    gap_ns: int,
    rejected: Sequence[Rejected] = (),
) -> Timeline:
    """Place records on the clock of `stamps_ns`, one for each record; None: end to end from 0.

    The stamps of contiguous records can vary by `gap_ns`. `rejected` are the parts of the stream
    that are not counted.
    """
    typical_ns = median_low([r.elapsed_ns for r in records]) if records else 0
    longest_ns = MOST_TYPICAL * typical_ns
    spans_ns = [r.elapsed_ns if r.elapsed_ns <= longest_ns else typical_ns for r in records]
    missing_ns = [0] * (len(records) + 1)  # before each record, and after the last
    for part in rejected:
        if part.elapsed_ns is not None:
            is_believable = typical_ns <= part.elapsed_ns <= longest_ns
            missing_ns[part.after] += part.elapsed_ns if is_believable else typical_ns
    ends_ns = list(accumulate(gap + span for gap, span in zip(missing_ns, spans_ns, strict=False)))
    clock_flags: list[str] = []
    if stamps_ns and records:
        ends_ns, clock_flags = _place(ends_ns, stamps_ns, gap_ns)
    placed = list(zip(records, spans_ns, ends_ns, strict=True))
    samples = [
        Sample(end_ns - r.elapsed_ns, end_ns, r.joules, r.thermal, r.beside)
        for r, span_ns, end_ns in placed
        if r.elapsed_ns == span_ns
    ]
    reasons = [part.reason for part in rejected]
    reasons += ["elapsed_ns is far above the others'"] * (len(records) - len(samples))
    flags = [
        f"{count} record{' was' if count == 1 else 's were'} not counted: {reason}"
        for reason, count in Counter(reasons).items()
    ]
    samples, boundary, cpu_flags = _correct_cpu(samples)
    begin_ns = ends_ns[0] - spans_ns[0] - missing_ns[0] if records else 0
    end_ns = ends_ns[-1] + missing_ns[-1] if records else 0
    return Timeline(samples, boundary, (*flags, *clock_flags, *cpu_flags), begin_ns, end_ns)


def read_log(path: Path) -> Timeline:
    """Timeline of a log of `powermetrics -f plist`, never empty.

    Raises:
        EdgeError: it cannot be read, or has no record with energy.
    """
    stream = RecordStream()
    records: list[Record] = []
    with open_file(path) as log:
        while chunk := log.read(CHUNK_BYTES):
            records += stream.feed(chunk)
            if not records and log.tell() >= MAX_JUNK_BYTES:
                break
    stream.finish()
    if not records:
        reason = stream.rejected[0].reason if stream.rejected else "no record"
        raise EdgeError(
            f"The power log {path} has no energy ({reason}): record it with `sudo powermetrics -f "
            "plist -i 500 --samplers cpu_power,gpu_power,thermal -o FILE`."
        )
    stamps_ns = [int(r.ended.timestamp()) * SECOND_NS for r in records if r.ended is not None]
    complete = len(stamps_ns) == len(records)
    return build_timeline(records, stamps_ns if complete else None, LOG_GAP_NS, stream.rejected)


def describe_boundary(rails: Sequence[str]) -> str:
    """The rails that are covered and those that are left out, in words."""
    if "CPU" not in rails:
        return f"{' + '.join(rails) or 'nothing'} of the SoC only: not a total"
    without = "" if "DRAM" in rails else "DRAM, "
    return f"{' + '.join(rails)} of the SoC, without {without}display and everything else"


def _place(
    ends_ns: Sequence[int], stamps_ns: Sequence[int], gap_ns: int
) -> tuple[list[int], list[str]]:
    """Ends on the clock of the stamps, and warnings about missing and surplus time."""
    lags_ns = [stamp - end for stamp, end in zip(stamps_ns, ends_ns, strict=True)]
    # A late stamp raises one lag, missing time all that follow. The minimum over what follows
    # tells them apart, and never moves a record before its predecessor.
    floors_ns = list(accumulate(reversed(lags_ns), min))[::-1]
    offset_ns, missing_ns, placed_ns = floors_ns[0], 0, []
    for end_ns, floor_ns in zip(ends_ns, floors_ns, strict=True):
        if floor_ns - offset_ns > gap_ns:
            missing_ns += floor_ns - offset_ns
            offset_ns = floor_ns
        placed_ns.append(end_ns + offset_ns)
    # The records cover more time than the clock: it was set back, or the machine slept.
    surplus_ns = max(0, min(lags_ns[: len(lags_ns) // 4 + 1]) - floors_ns[-1])
    tolerated_ns = max(gap_ns, min(MAX_DIFFERENCE_NS, int(MAX_DIFFERENCE * ends_ns[-1])))
    flags = []
    if missing_ns > tolerated_ns:
        flags.append(f"{missing_ns / 1e9:.1f} s are missing between records")
    if surplus_ns > tolerated_ns:
        flags.append(
            f"the records cover {surplus_ns / 1e9:.1f} s more than passed on the clock: it was "
            "set, the machine slept, or records are out of order"
        )
    elif any(after < before for before, after in pairwise(stamps_ns)):
        flags.append("the clock was set back, or records are out of order")
    return placed_ns, flags


def _correct_cpu(samples: list[Sample]) -> tuple[list[Sample], str, list[str]]:
    """Exclude a stalled CPU counter from the total; spread one that is published in batches."""
    rails = list(dict.fromkeys(rail for sample in samples for rail in sample.joules))
    stalled_ns = _longest_zero_ns(samples)
    if stalled_ns > STALL_NS:
        flag = (
            f"CPU counter stalled: it was 0 for {stalled_ns / 1e9:.1f} s, so the energy is "
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
    """Join samples without CPU energy to the next that has it: it was used in all of them."""
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

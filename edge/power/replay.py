"""A recorded log of powermetrics, read instead of run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from edge.errors import EdgeError
from edge.power.meter import Sample
from edge.power.powermetrics_frames import RecordStream
from edge.power.powermetrics_record import Record
from edge.power.powermetrics_text import is_text, read_text_records
from edge.power.powermetrics_timeline import Timeline, build_timeline, describe_boundary

# A week at two records a second would be 10 GB; nobody's log is.
MAX_LOG_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
# powermetrics cuts its stamps to whole seconds: those of contiguous records vary by so much.
STAMP_NS = 10**9
GAP_NS = STAMP_NS + 2 * 10**8


@dataclass(frozen=True)
class Recording:
    """A whole log. Samples lie on a clock of its own: 0 is where the first record begins.

    `ended` has the tool's own stamp of each record's end, cut to whole seconds, None where the
    log has none; `wall_begin_ns` is the moment 0 in nanoseconds since 1970, as well as those
    stamps tell it. Where the CPU's counter came in batches a sample joins several records.
    """

    samples: Sequence[Sample]
    boundary: str
    flags: Sequence[str]
    ended: Sequence[datetime | None]
    wall_begin_ns: int | None
    hw_model: str | None = None
    build: str | None = None


def read_log(path: Path) -> Recording:
    """Read a log of `powermetrics`, plist or text; its content tells which.

    Raises:
        EdgeError: it cannot be read, or holds no energy.
    """
    try:
        records, complaints = _read_records(path)
    except OSError as error:
        raise EdgeError(
            f"The power log {path} cannot be read ({error.strerror}): give the file that "
            "powermetrics wrote."
        ) from error
    if not records:
        raise EdgeError(
            f"The power log {path} holds no energy ({complaints[0] if complaints else 'no record'})"
            ": record it with `sudo powermetrics -f plist -i 500 --samplers "
            "cpu_power,gpu_power,thermal -o FILE`."
        )
    stamps_ns = _stamps_ns(records)
    timeline = build_timeline(records, stamps_ns, GAP_NS, complaints)
    return _from_zero(timeline, records, stamps_ns)


class ReplayMeter:
    """Takes its samples from a log that powermetrics writes at the same time, or wrote before.

    For who must type the root command in another terminal. The log is read at `stop`; its wall
    clock stamps place it on the monotonic clock.

    Args:
        path: the log.
        wall_ns: the clock of the log's stamps.
        clock_ns: the clock of the samples.
    """

    def __init__(
        self,
        path: Path,
        wall_ns: Callable[[], int] = time.time_ns,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.source = f"replay:{path.name}"
        self.boundary = describe_boundary(["CPU", "GPU", "ANE"])
        self.flags: Sequence[str] = ()
        self._path, self._wall_ns, self._clock_ns = path, wall_ns, clock_ns
        self.unavailable: str | None = (
            None if path.is_file() else f"the power log {path.name} is not there"
        )

    def start(self) -> None:
        """Nothing to start: someone else records."""

    def stop(self) -> Sequence[Sample]:
        """All that the log holds, on the monotonic clock."""
        if self.unavailable is not None:
            return ()
        try:
            recording = read_log(self._path)
        except EdgeError as error:
            self.unavailable = str(error).rstrip(".")
            return ()
        self.boundary, self.flags = recording.boundary, recording.flags
        if recording.wall_begin_ns is None:
            self.unavailable = f"the power log {self._path.name} has no time stamps to place it by"
            return ()
        offset_ns = recording.wall_begin_ns + self._clock_ns() - self._wall_ns()
        return _shifted(recording.samples, offset_ns)


def _read_records(path: Path) -> tuple[list[Record], list[str]]:
    if path.stat().st_size > MAX_LOG_BYTES:
        raise OSError(0, "too large for a power log")
    with path.open("rb") as log:
        head = log.read(HEAD_BYTES)
        if b"<plist" not in head and is_text(head.decode("utf-8", "replace")):
            return _unique(*read_text_records((head + log.read()).decode("utf-8", "replace")))
        stream = RecordStream()
        records = stream.feed(head)
        while chunk := log.read(CHUNK_BYTES):
            records += stream.feed(chunk)
        stream.finish()
    return records, stream.complaints


def _unique(records: Sequence[Record], complaints: list[str]) -> tuple[list[Record], list[str]]:
    unique = {r.digest: r for r in records}
    repeated = ["the same record twice"] * (len(records) - len(unique))
    return list(unique.values()), [*complaints, *repeated]


def _stamps_ns(records: Sequence[Record]) -> list[int] | None:
    """Each record's own stamp; None where any is missing."""
    ended = [r.ended for r in records]
    known = [int(e.timestamp()) * 10**9 for e in ended if e is not None]
    return known if len(known) == len(ended) else None


def _from_zero(
    timeline: Timeline, records: Sequence[Record], stamps_ns: Sequence[int] | None
) -> Recording:
    zero_ns = timeline.samples[0].begin_ns
    return Recording(
        samples=_shifted(timeline.samples, -zero_ns),
        boundary=timeline.boundary,
        flags=timeline.flags,
        ended=[r.ended for r in records],
        wall_begin_ns=None if stamps_ns is None else zero_ns + _cut_ns(records, stamps_ns),
        hw_model=records[0].hw_model,
        build=records[0].build,
    )


def _cut_ns(records: Sequence[Record], stamps_ns: Sequence[int]) -> int:
    """What cutting to whole seconds took from the stamp that placed the samples.

    That stamp has the smallest lag, so it lost the most; where lags fill the second evenly the
    loss is half of what they leave open, more than that is not known.
    """
    elapsed_ns, lags_ns = 0, []
    for record, stamp_ns in zip(records, stamps_ns, strict=True):
        elapsed_ns += record.elapsed_ns
        lags_ns.append(stamp_ns - elapsed_ns)
    spread_ns = min(max(lags_ns) - min(lags_ns), STAMP_NS)
    return spread_ns + (STAMP_NS - spread_ns) // 2


def _shifted(samples: Sequence[Sample], by_ns: int) -> list[Sample]:
    return [replace(s, begin_ns=s.begin_ns + by_ns, end_ns=s.end_ns + by_ns) for s in samples]

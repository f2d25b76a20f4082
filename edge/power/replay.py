"""A recorded log of powermetrics, read instead of run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edge.errors import EdgeError
from edge.power.powermetrics_record import Record, RecordStream
from edge.power.powermetrics_timeline import Timeline, build_timeline

# A week at two records a second would be 10 GB.
MAX_LOG_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
# powermetrics cuts its stamps to whole seconds: those of contiguous records vary by this much.
GAP_NS = 10**9 + 2 * 10**8


def read_log(path: Path) -> Timeline:
    """A log of `powermetrics -f plist`, on a clock that begins with its first record.

    Raises:
        EdgeError: it cannot be read, or holds no energy.
    """
    stream = RecordStream()
    try:
        records = _read_records(path, stream)
    except OSError as error:
        raise EdgeError(
            f"The power log {path} cannot be read ({error.strerror}): give the file that "
            "powermetrics wrote."
        ) from error
    complaints = stream.complaints
    if not records:
        raise EdgeError(
            f"The power log {path} holds no energy ({complaints[0] if complaints else 'no record'})"
            ": record it with `sudo powermetrics -f plist -i 500 --samplers "
            "cpu_power,gpu_power,thermal -o FILE`."
        )
    timeline = build_timeline(records, _stamps_ns(records), GAP_NS, complaints)
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


def _stamps_ns(records: Sequence[Record]) -> list[int] | None:
    """Each record's own stamp; None where any is missing."""
    stamps = [int(r.ended.timestamp()) * 10**9 for r in records if r.ended is not None]
    return stamps if len(stamps) == len(records) else None

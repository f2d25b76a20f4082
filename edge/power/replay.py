"""A recorded log of powermetrics, read instead of run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edge.errors import EdgeError
from edge.power.powermetrics_process import RecordStream
from edge.power.powermetrics_record import Record
from edge.power.powermetrics_timeline import Timeline, build_timeline

# A week at two records a second would be 10 GB; nobody's log is.
MAX_LOG_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
# powermetrics cuts its stamps to whole seconds: those of contiguous records vary by so much.
GAP_NS = 10**9 + 2 * 10**8


def read_log(path: Path) -> Timeline:
    """A log of `powermetrics -f plist`, on a clock that begins with its first record.

    Where the CPU's counter came in batches a sample joins several records.

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
    timeline = build_timeline(records, _stamps_ns(records), GAP_NS, complaints)
    zero_ns = timeline.samples[0].begin_ns
    return replace(
        timeline,
        samples=[
            replace(s, begin_ns=s.begin_ns - zero_ns, end_ns=s.end_ns - zero_ns)
            for s in timeline.samples
        ],
    )


def _read_records(path: Path) -> tuple[list[Record], list[str]]:
    if path.stat().st_size > MAX_LOG_BYTES:
        raise OSError(0, "too large for a power log")
    stream = RecordStream()
    records: list[Record] = []
    with path.open("rb") as log:
        while chunk := log.read(CHUNK_BYTES):
            records += stream.feed(chunk)
    stream.finish()
    return records, stream.complaints


def _stamps_ns(records: Sequence[Record]) -> list[int] | None:
    """Each record's own stamp; None where any is missing."""
    ended = [r.ended for r in records]
    known = [int(e.timestamp()) * 10**9 for e in ended if e is not None]
    return known if len(known) == len(ended) else None

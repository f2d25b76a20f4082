"""Records of powermetrics: cut out of its stream, read, and checked for what cannot be true."""

import plistlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from xml.parsers.expat import ExpatError

# The rails of the total, by the prefix of their keys; DRAM on macOS 12 and older.
RAILS = {"cpu": "CPU", "gpu": "GPU", "ane": "ANE", "dram": "DRAM"}
BESIDE = {"package": "Package"}  # on macOS 12 and older: all of these and more
MAX_W = 1000.0
MAX_ELAPSED_NS = 24 * 3600 * 10**9
END = b"</plist>"
# Six clusters of an M2 Ultra make 76 kB.
MAX_RECORD_BYTES = 1 << 20
# plistlib promises no exception of its own for untrusted bytes. Entity declarations are refused,
# so no small record unfolds into a large one.
PARSE_ERRORS = (
    *(ExpatError, ValueError, TypeError, AttributeError),
    *(LookupError, ArithmeticError, RecursionError),
)


class BadRecordError(ValueError):
    """Why a record is not believed; a few words."""


@dataclass(frozen=True)
class Record:
    """Energy of one interval; `ended` is the tool's own stamp, cut to whole seconds."""

    elapsed_ns: int
    joules: Mapping[str, float]
    beside: Mapping[str, float] = field(default_factory=dict)
    thermal: str | None = None
    ended: datetime | None = None


class RecordStream:
    """Bytes in, believable records out.

    A NUL comes before every record but the first: waiting for it, and not for `</plist>`, would
    show each record one interval late. `complaints` has some words for all that was left out.
    """

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self._buffer = bytearray()
        self._seen: set[int] = set()

    def feed(self, chunk: bytes) -> list[Record]:
        """The records that this chunk completes."""
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
        """Read a frame from its last header on: one before that began a record that was cut."""
        begin = frame.rfind(b"<?xml")
        begin = begin if begin >= 0 else frame.rfind(b"<plist")
        if begin < 0 or len(frame) - begin > MAX_RECORD_BYTES:
            self._discard(frame)
            return None
        self._discard(frame[:begin])
        data = frame[begin:]
        try:
            record = read_record(data)
        except BadRecordError as error:
            self.complaints.append(str(error))
            return None
        # Two intervals never agree in every counter to the nanosecond.
        if hash(data) in self._seen:
            self.complaints.append("the same record twice")
            return None
        self._seen.add(hash(data))
        return record

    def _discard(self, junk: bytes) -> None:
        if junk.strip(b"\0 \t\r\n"):
            self.complaints.append("cut off or not a record")


def read_record(data: bytes) -> Record:
    """Read and check one record.

    Raises:
        BadRecordError: it is broken, or cannot be true.
    """
    try:
        document = plistlib.loads(data, fmt=plistlib.FMT_XML)
    except PARSE_ERRORS as error:
        raise BadRecordError("broken XML") from error
    if not isinstance(document, dict):
        raise BadRecordError("no dictionary")
    if document.get("is_delta") is False:
        raise BadRecordError("a total since boot")
    elapsed_ns = document.get("elapsed_ns")
    if type(elapsed_ns) is not int or not 0 < elapsed_ns < MAX_ELAPSED_NS:
        raise BadRecordError("no elapsed_ns")
    # The GPU's own dictionary covers another interval than elapsed_ns, so its energy differs.
    processor = document.get("processor")
    if not isinstance(processor, dict):
        raise BadRecordError("no processor: powermetrics ran without the cpu_power sampler")
    thermal, ended = document.get("thermal_pressure"), document.get("timestamp")
    return Record(
        elapsed_ns=elapsed_ns,
        joules={
            rail: _joules(processor, key, elapsed_ns)
            for key, rail in RAILS.items()
            if key == "cpu" or f"{key}_energy" in processor
        },
        beside={
            rail: _joules(processor, key, elapsed_ns)
            for key, rail in BESIDE.items()
            if f"{key}_energy" in processor
        },
        # In lower case, as THERMAL_LEVELS has it.
        thermal=thermal[:64].lower() or None if isinstance(thermal, str) else None,
        ended=ended.replace(tzinfo=UTC) if isinstance(ended, datetime) else None,
    )


def _joules(processor: Mapping[str, Any], key: str, elapsed_ns: int) -> float:
    """Joules of a rail, if its millijoules can be what a computer used."""
    energy_mj = processor.get(f"{key}_energy")
    if isinstance(energy_mj, bool) or not isinstance(energy_mj, int | float):
        raise BadRecordError(f"no {key}_energy")
    # Another unit would be a thousand times as much. NaN is outside the range too.
    if not 0 <= energy_mj < MAX_W * elapsed_ns / 1e6:
        raise BadRecordError(f"{key}_energy is not of 0 to {MAX_W:.0f} W")
    return energy_mj / 1e3

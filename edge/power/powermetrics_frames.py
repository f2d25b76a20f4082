"""Cut the stream of `powermetrics -f plist` into records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edge.power.powermetrics_record import BadRecordError, Record, read_plist_record

END = b"</plist>"
# Six clusters of an M2 Ultra make 65 kB. Anything this large is no record.
MAX_RECORD_BYTES = 1 << 20


class Framer:
    """Bytes in, whole records out.

    powermetrics writes a NUL before every record but the first, so a record is whole at its
    `</plist>`: who waits for the NUL sees each record one interval late and the last one never.

    `discarded_bytes` counts what belonged to no whole record; NULs and white space are free.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self.discarded_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The records that this chunk completes."""
        self._buffer += chunk
        while (end := self._buffer.find(END, self._scanned)) >= 0:
            end += len(END)
            record = self._begin_at_header(bytes(self._buffer[:end]))
            del self._buffer[:end]
            self._scanned = 0
            if record is not None:
                yield record
        self._scanned = max(0, len(self._buffer) - len(END) + 1)
        if len(self._buffer) > MAX_RECORD_BYTES:
            self._discard(bytes(self._buffer))
            self._buffer.clear()
            self._scanned = 0

    def finish(self) -> None:
        """The stream is over: what is left is a truncated tail, and dropped."""
        self._discard(bytes(self._buffer))
        self._buffer.clear()

    def _begin_at_header(self, frame: bytes) -> bytes | None:
        """The frame from its last header on: one before that began a record that was cut."""
        begin = frame.rfind(b"<?xml")
        begin = begin if begin >= 0 else frame.rfind(b"<plist")
        if begin < 0:
            self._discard(frame)
            return None
        self._discard(frame[:begin])
        if len(frame) - begin > MAX_RECORD_BYTES:
            self._discard(frame[begin:])
            return None
        return frame[begin:]

    def _discard(self, junk: bytes) -> None:
        self.discarded_bytes += len(junk.strip(b"\0 \t\r\n"))


class RecordStream:
    """Bytes in, believable records out; `complaints` has a few words for each of the others."""

    def __init__(self) -> None:
        self._framer = Framer()
        self._seen: set[int] = set()
        self._rejected: list[str] = []
        self._losses = 0

    @property
    def complaints(self) -> list[str]:
        """Why records are missing."""
        junk = self._framer.discarded_bytes
        return [*self._rejected, *(["cut off or not a record"] if junk else [])]

    def feed(self, chunk: bytes) -> list[Record]:
        """The records that this chunk completes."""
        return [r for data in self._framer.feed(chunk) if (r := self._read(data)) is not None]

    def finish(self) -> None:
        """The stream is over."""
        self._framer.finish()

    def _read(self, data: bytes) -> Record | None:
        try:
            record = read_plist_record(data)
        except BadRecordError as error:
            self._rejected.append(str(error))
            return None
        # Two intervals never agree in every counter to the nanosecond.
        if record.digest in self._seen:
            self._rejected.append("the same record twice")
            return None
        self._seen.add(record.digest)
        return replace(record, follows_loss=self._lost_something())

    def _lost_something(self) -> bool:
        before, self._losses = self._losses, len(self._rejected) + self._framer.discarded_bytes
        return self._losses > before

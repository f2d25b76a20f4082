"""A running powermetrics: its stream cut into records as they arrive, and how it ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from edge.power.powermetrics_record import BadRecordError, Record, read_plist_record

END = b"</plist>"
# Six clusters of an M2 Ultra make 65 kB. Anything this large is no record.
MAX_RECORD_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16
STDERR_BYTES = 4096
WAKE_S = 0.1
STOP_S = 2.0


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


class PowermetricsProcess:
    """Starts the command and reads it in a thread, so that no one ever waits on its pipe.

    Args:
        command: program and arguments.
        patience_s: how long no record may come before it counts as hung.
        clock_ns: stamps each record on arrival.
        send_signal: as `os.kill`.

    Raises:
        OSError: the command cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        patience_s: float,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        send_signal: Callable[[int, int], None] = os.kill,
    ) -> None:
        self.records: list[Record] = []
        self.arrivals_ns: list[int] = []
        self.failure: str | None = None
        self.lives_on = False
        self._stream = RecordStream()
        self._patience_ns = int(patience_s * 1e9)
        self._clock_ns, self._send_signal = clock_ns, send_signal
        self._news = threading.Condition()
        self._closing = self._ended = False
        self._stderr = b""
        # A group of its own: Ctrl-C is for us, and the last records are still wanted. Not a
        # session of its own: sudo remembers passwords by terminal.
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "LC_ALL": "C"},
            process_group=0,
        )
        self._thread = threading.Thread(target=self._read, name="powermetrics", daemon=True)
        self._thread.start()

    @property
    def complaints(self) -> list[str]:
        """Why records are missing, a few words for each."""
        return self._stream.complaints

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._ended

    @property
    def stderr(self) -> str:
        """The end of what it wrote there; noise is normal."""
        return self._stderr.decode("utf-8", "replace").strip()

    def set_patience(self, patience_s: float) -> None:
        """How long no record may come from now on before it counts as hung."""
        self._patience_ns = int(patience_s * 1e9)

    def wait_for(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `done` holds; False if the process ended or the time is up before."""
        with self._news:
            self._news.wait_for(lambda: done() or self._ended, timeout_s)
            return done()

    def latest_end_ns(self) -> int | None:
        """About when the newest record's interval ended: never later than it arrived."""
        elapsed_ns, lag_ns = 0, None
        for record, arrival_ns in zip(self.records, self.arrivals_ns, strict=False):
            elapsed_ns += record.elapsed_ns
            lag = arrival_ns - elapsed_ns
            lag_ns = lag if lag_ns is None else min(lag_ns, lag)
        return None if lag_ns is None else elapsed_ns + lag_ns

    def close(self) -> None:
        """Stop it, politely. The child may be root's: then closing its pipe must do."""
        if self._ended and self.failure is None:
            self._reap()  # it closed its pipes, so it is about to exit by itself
        if self._child.poll() is None:
            self._terminate()
        self._closing = True
        self._thread.join(STOP_S)
        self.lives_on = not self._reap()

    def _terminate(self) -> None:
        try:
            self._send_signal(self._child.pid, signal.SIGTERM)
            self._child.wait(STOP_S)
        except (PermissionError, ProcessLookupError, subprocess.TimeoutExpired):
            pass  # its next write meets a closed pipe, and -n bounds its life

    def _reap(self) -> bool:
        """Whether the child is gone."""
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _read(self) -> None:
        stdout, stderr = self._child.stdout, self._child.stderr
        assert stdout is not None and stderr is not None
        with stdout, stderr:
            self._drain(stdout.fileno(), stderr.fileno())
        self._stream.finish()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _drain(self, stdout: int, stderr: int) -> None:
        heard_ns, open_pipes = self._clock_ns(), {stdout, stderr}
        while stdout in open_pipes or stderr in open_pipes:
            ready = select.select(list(open_pipes), [], [], WAKE_S)[0]
            for pipe in ready:
                chunk = os.read(pipe, CHUNK_BYTES)
                if not chunk:
                    open_pipes.discard(pipe)
                elif pipe == stderr:
                    self._stderr = (self._stderr + chunk)[-STDERR_BYTES:]
                elif self._take(chunk):
                    heard_ns = self._clock_ns()
            # A child of the child may hold the pipes open, or a child that lives on fill them.
            if self._closing and (not ready or self._child.poll() is None):
                return
            if self._clock_ns() - heard_ns > self._patience_ns and not self._closing:
                self.failure = f"powermetrics gave no record for {self._patience_ns / 1e9:g} s"
                return

    def _take(self, chunk: bytes) -> bool:
        """Stamp and keep the records in a chunk, all of which arrived with it."""
        arrival_ns = self._clock_ns()
        records = self._stream.feed(chunk)
        with self._news:
            self.records += records
            self.arrivals_ns += [arrival_ns] * len(records)
            self._news.notify_all()
        return bool(records)

    def exit_words(self) -> str:
        """How it ended, in words."""
        if self._ended:
            self._reap()
        code = self._child.poll()
        how = "gave no record in time" if code is None else f"ended with code {code}"
        return f"powermetrics {how}{': ' + self.stderr[-300:] if self.stderr else ''}"

"""Power of a Mac's chip, from Apple's own powermetrics."""

import math
import os
import platform
import re
import select
import signal
import subprocess
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import takewhile

import psutil

from edge.power.meter import Meter, Sample
from edge.power.powermetrics_records import Record, RecordStream, build_timeline, describe_boundary

SAMPLERS = "cpu_power,gpu_power,thermal"
LONGEST_RUN_S = 6 * 3600
INTERVAL_MS, PROBE_INTERVAL_MS = 500, 100
READY_S = 15.0  # for the first record
REACH_S = 2.0  # for a record that reaches past the end
STOP_S = 2.0
WAKE_S = 0.1
# On macOS 27.0 the CPU's counter moves every 2.2 s: the last batch comes this long after the end.
BATCH_S = 2.5
# Arrivals of contiguous records vary by less.
GAP_NS = 100 * 10**6
# Records before a window, by which the clock of those in it is placed.
BEFORE_NS = 5 * 10**9
CHUNK_BYTES = 1 << 16
STDERR_BYTES = 4096
SUDOERS = "YOUR_NAME ALL=(root) NOPASSWD: /usr/bin/powermetrics"
HOW_TO_ALLOW = (
    "allow it with `sudo visudo -f /etc/sudoers.d/powermetrics` and the line "
    f"`{SUDOERS}`, or run `sudo -v` in this terminal first, which by default lasts five minutes"
)
# By absolute path: a PATH may contain ".", where any folder could hold its own sudo.
POWERMETRICS, SUDO = "/usr/bin/powermetrics", "/usr/bin/sudo"
# Commands that have made a record: sudo logs every call, so each is tried once until it fails.
_proven: set[tuple[str, ...]] = set()


def find_command() -> tuple[str, ...]:
    """`sudo -n .../powermetrics`; empty where either is missing. Plain sudo would prompt."""
    is_here = all(os.access(program, os.X_OK) for program in (SUDO, POWERMETRICS))
    return (SUDO, "-n", POWERMETRICS) if is_here and platform.system() == "Darwin" else ()


def forget_probes() -> None:
    """Make the next meter check again that powermetrics runs here."""
    _proven.clear()


class PowermetricsProcess:
    """A running powermetrics, read in a thread so that it never waits on its pipe.

    `latest_end_ns` is about when the newest record's interval ended, never later than the record
    arrived.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.records: list[Record] = []
        self.arrivals_ns: list[int] = []
        self.latest_end_ns = 0
        self.ended = self.still_runs = self._closing = False
        self.stream = RecordStream()
        self._elapsed_ns, self._lag_ns = 0, math.inf
        self._news = threading.Condition()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        # Its own process group, so that Ctrl-C does not end it before its last records. Not its
        # own session: sudo remembers passwords by terminal.
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            env={**os.environ, "LC_ALL": "C"},
            process_group=0,
        )
        self._thread = threading.Thread(target=self._read, name="powermetrics", daemon=True)
        self._thread.start()

    @property
    def stderr(self) -> str:
        """The end of its error output."""
        file = self._stderr.fileno()
        begin = max(0, os.fstat(file).st_size - STDERR_BYTES)
        return os.pread(file, STDERR_BYTES, begin).decode("utf-8", "replace").strip()

    def wait_for(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `done` is true; false if the process ended or the time was up before."""
        with self._news:
            self._news.wait_for(lambda: done() or self.ended, timeout_s)
            return done()

    def since(self, stamp_ns: int) -> tuple[list[Record], list[int]]:
        """Records that arrived after a stamp, and their arrivals; forgets the older."""
        with self._news:
            old = bisect_right(self.arrivals_ns, stamp_ns)
            del self.records[:old], self.arrivals_ns[:old]
            return self.records[:], self.arrivals_ns[:]

    def close(self) -> None:
        """Stop it. A child of root cannot be signalled: closing its pipe ends it, or its -n."""
        if self._child.poll() is None and not (self.ended and self._exits()):
            try:
                os.kill(self._child.pid, signal.SIGTERM)
                self._child.wait(STOP_S)
            except (PermissionError, ProcessLookupError, subprocess.TimeoutExpired):
                self._closing = True
        self._thread.join(STOP_S)
        self._closing = True  # a grandchild may hold the pipe open
        self._thread.join(STOP_S)
        self.still_runs = not self._exits()

    def describe_end(self) -> str:
        """The exit code and error output, or for how long it has been silent."""
        if not self.ended:
            silent_s = (time.monotonic_ns() - max(self.arrivals_ns, default=0)) / 1e9
            return f"powermetrics gave no record for {silent_s:.1f} s"
        self._exits()
        return f"powermetrics ended with code {self._child.poll()}: {self.stderr[-300:]}"

    def _exits(self) -> bool:
        try:
            self._child.wait(STOP_S)
            return True
        except subprocess.TimeoutExpired:
            return False

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as stdout:
            while not self._closing:
                if not select.select([stdout], [], [], WAKE_S)[0]:
                    continue
                chunk = os.read(stdout.fileno(), CHUNK_BYTES)
                if not chunk:
                    break
                self._take(chunk)
        self.stream.finish()
        with self._news:
            self.ended = True
            self._news.notify_all()

    def _take(self, chunk: bytes) -> None:
        """Keep the records in a chunk, with its arrival as their stamp."""
        arrival_ns = time.monotonic_ns()
        with self._news:
            for record in self.stream.feed(chunk):
                self.records.append(record)
                self.arrivals_ns.append(arrival_ns)
                self._elapsed_ns += record.elapsed_ns
                self._lag_ns = min(self._lag_ns, arrival_ns - self._elapsed_ns)
                self.latest_end_ns = int(self._elapsed_ns + self._lag_ns)
            self._news.notify_all()


class PowermetricsMeter(Meter):
    """Apple's powermetrics through `sudo -n`."""

    source = "powermetrics"
    boundary = describe_boundary(["CPU", "GPU", "ANE"])

    def __init__(self) -> None:
        self._process: PowermetricsProcess | None = None
        self._another_runs = False
        self._command = find_command()
        self._probe()
        self._works = self.unavailable is None

    def start(self) -> None:
        if not self._works:
            return
        self.unavailable, self.flags = None, ()
        running = (process.info["name"] for process in psutil.process_iter(["name"]))
        self._another_runs = "powermetrics" in running
        self._process = self._spawn(INTERVAL_MS, math.ceil(LONGEST_RUN_S * 1e3 / INTERVAL_MS))
        if self._process is None:
            _proven.discard(self._command)

    def read(self, since_ns: int) -> Sequence[Sample]:
        if self._process is None:
            return ()
        records, arrivals_ns = self._process.since(since_ns - BEFORE_NS)
        return build_timeline(records, arrivals_ns, GAP_NS).samples

    def stop(self) -> Sequence[Sample]:
        """Stop when a record reaches past this moment."""
        process, self._process = self._process, None
        if process is None:
            return ()
        stop_ns = time.monotonic_ns()
        failure = None
        try:
            if process.wait_for(lambda: process.latest_end_ns >= stop_ns, REACH_S):
                process.wait_for(lambda: not _cpu_pending(process.records), BATCH_S)
            else:
                failure = process.describe_end()
        finally:  # Ctrl-C must not leave it running
            process.close()
        return self._conclude(process, failure)

    def _conclude(self, process: PowermetricsProcess, failure: str | None) -> Sequence[Sample]:
        timeline = build_timeline(
            process.records, process.arrivals_ns, GAP_NS, process.stream.rejected
        )
        flags = [*timeline.flags]
        if self._another_runs:
            flags.append("another powermetrics was running: its own load is in these joules")
        if process.still_runs:
            flags.append("powermetrics could not be stopped: it ends by itself at its next record")
        if failure is not None:
            flags.append(f"the measurement is incomplete: {failure}")
            self.unavailable = f"power was not measured to the end: {failure}"
        self.boundary, self.flags = timeline.boundary, tuple(flags)
        return timeline.samples

    def _probe(self) -> None:
        """Make one record, unless the command has made one before."""
        if not self._command:
            self.unavailable = "powermetrics was not found: only macOS has it"
        elif self._command not in _proven and (process := self._spawn(PROBE_INTERVAL_MS, 1)):
            process.close()
            _proven.add(self._command)

    def _spawn(self, interval_ms: int, records: int) -> PowermetricsProcess | None:
        """A process with its first record; None, and the reason in `unavailable`, without one."""
        options = ["-f", "plist", "-b", "0", "-i", str(interval_ms), "-n", str(records)]
        try:
            process = PowermetricsProcess([*self._command, *options, "--samplers", SAMPLERS])
        except OSError as error:
            self.unavailable = f"powermetrics cannot be started ({error.strerror})"
            return None
        try:
            if process.wait_for(lambda: bool(process.records), READY_S):
                return process
            self.unavailable = _why_no_record(process)
        except BaseException:  # Ctrl-C: nothing else can stop a process that runs as root
            process.close()
            raise
        process.close()
        return None


def _why_no_record(process: PowermetricsProcess) -> str:
    if re.search("password|sudoers|superuser", process.stderr):
        return f"powermetrics needs root and sudo wants a password: {HOW_TO_ALLOW}"
    if process.stream.rejected:
        return f"powermetrics gives no valid record: {process.stream.rejected[0].reason}"
    if not process.ended:
        return f"powermetrics gave no record within {READY_S:g} s"
    return process.describe_end()


def _cpu_pending(records: Sequence[Record]) -> bool:
    """True if the newest records have no CPU energy although older ones have."""
    zeros = len(list(takewhile(lambda r: r.joules.get("CPU") == 0, reversed(records))))
    return 0 < zeros < len(records)

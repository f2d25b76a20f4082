"""Power of a Mac's chip, from Apple's own powermetrics."""

import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import takewhile

import psutil

from edge.power.meter import Sample
from edge.power.powermetrics_record import Record, RecordStream
from edge.power.powermetrics_timeline import build_timeline, describe_boundary

SAMPLERS = "cpu_power,gpu_power,thermal"
LONGEST_RUN_S = 6 * 3600
DEFAULT_INTERVAL_MS = 500
READY_S = 15.0  # for the first record
REACH_S = 2.0  # for a record that reaches past the end, at least three intervals
STOP_S = 2.0
WAKE_S = 0.1
# On macOS 27.0 the CPU's counter moves every 2.2 s: the last batch comes this long after the end.
BATCH_S = 2.5
CHUNK_BYTES = 1 << 16
STDERR_BYTES = 4096
SUDOERS = "YOUR_NAME ALL=(root) NOPASSWD: /usr/bin/powermetrics"
HOW_TO_ALLOW = (
    "allow it with `sudo visudo -f /etc/sudoers.d/powermetrics` and the line "
    f"`{SUDOERS}`, or run `sudo -v` in this terminal first, which by default lasts five minutes"
)
APPLES_OWN = "/usr/bin/powermetrics"
STAND_IN = "powermetrics stand-in"
# Commands that have made a record: sudo logs every call, so each is tried once until it fails.
_proven: set[tuple[str, ...]] = set()


def find_command() -> list[str] | None:
    """`sudo -n .../powermetrics`, None where either is missing. Plain sudo would ask."""
    powermetrics = shutil.which("powermetrics") or shutil.which(APPLES_OWN)
    sudo = shutil.which("sudo")
    return [sudo, "-n", powermetrics] if powermetrics and sudo else None


def forget_probes() -> None:
    """Let the next meter prove again that powermetrics runs here."""
    _proven.clear()


def is_apples(command: Sequence[str]) -> bool:
    """True for the powermetrics of macOS, false for another program of that name."""
    return sys.platform == "darwin" and command[-1] == APPLES_OWN


class PowermetricsProcess:
    """A running powermetrics, read in a thread so that it never waits on its pipe.

    `latest_end_ns` is about when the newest record's interval ended, never later than the record
    arrived. `lives_on`: it could not be stopped.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.records: list[Record] = []
        self.arrivals_ns: list[int] = []
        self.latest_end_ns = 0
        self.ended = self.lives_on = self._closing = False
        self.stream = RecordStream()
        self._elapsed_ns, self._lag_ns = 0, math.inf
        self._news = threading.Condition()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        # A group of its own: Ctrl-C is for us, and the last records are still wanted. Not a
        # session of its own: sudo remembers passwords by terminal.
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
        """Wait until `done` holds; false if the process ended or the time is up before."""
        with self._news:
            self._news.wait_for(lambda: done() or self.ended, timeout_s)
            return done()

    def close(self) -> None:
        """Stop it. The child may be root's: then closing its pipe must do, and -n bounds it."""
        if self._child.poll() is None and not (self.ended and self._exits()):
            try:
                os.kill(self._child.pid, signal.SIGTERM)
                self._child.wait(STOP_S)
            except (PermissionError, ProcessLookupError, subprocess.TimeoutExpired):
                self._closing = True
        self._thread.join(STOP_S)
        self._closing = True  # a child of the child may hold the pipe open
        self._thread.join(STOP_S)
        self.lives_on = not self._exits()

    def how_it_ended(self) -> str:
        """How it ended or that it hangs, in words."""
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
        """Stamp and keep the records in a chunk, all of which arrived with it."""
        arrival_ns = time.monotonic_ns()
        with self._news:
            for record in self.stream.feed(chunk):
                self.records.append(record)
                self.arrivals_ns.append(arrival_ns)
                self._elapsed_ns += record.elapsed_ns
                self._lag_ns = min(self._lag_ns, arrival_ns - self._elapsed_ns)
                self.latest_end_ns = int(self._elapsed_ns + self._lag_ns)
            self._news.notify_all()


class PowermetricsMeter:
    """Apple's powermetrics through `sudo -n`; another program of that name is called a stand-in."""

    def __init__(
        self, interval_ms: int | None = None, command: Sequence[str] | None = None
    ) -> None:
        self.boundary = describe_boundary(["CPU", "GPU", "ANE"])
        self.flags: Sequence[str] = ()
        self.unavailable: str | None = None
        self._interval_ms = interval_ms or DEFAULT_INTERVAL_MS
        self._process: PowermetricsProcess | None = None
        self._foreign = False
        self._command = list(command) if command is not None else find_command()
        self._stand_in = self._command is not None and not is_apples(self._command)
        self.source = STAND_IN if self._stand_in else "powermetrics"
        self._works = self._probe()

    def start(self) -> None:
        """Start powermetrics; returns when its first record is whole, or with a reason."""
        if not self._works:
            return
        self.unavailable, self.flags = None, ()
        running = (process.info["name"] for process in psutil.process_iter(["name"]))
        self._foreign = "powermetrics" in running
        bound = math.ceil(LONGEST_RUN_S * 1e3 / self._interval_ms)
        self._process = self._spawn(self._interval_ms, bound)
        if self._process is None:
            _proven.discard(tuple(self._command or ()))

    def stop(self) -> Sequence[Sample]:
        """Stop when a record reaches past this moment."""
        process, self._process = self._process, None
        if process is None:
            return ()
        stop_ns, reach_s = time.monotonic_ns(), max(REACH_S, 3 * self._interval_ms / 1e3)
        failure = None
        try:
            if process.wait_for(lambda: process.latest_end_ns >= stop_ns, reach_s):
                process.wait_for(lambda: not _cpu_pending(process.records), BATCH_S)
            else:
                failure = process.how_it_ended()
        finally:  # Ctrl-C must not leave it running
            process.close()
        return self._conclude(process, failure)

    def _conclude(self, process: PowermetricsProcess, failure: str | None) -> Sequence[Sample]:
        timeline = build_timeline(
            process.records,
            process.arrivals_ns,
            gap_ns=max(100, self._interval_ms // 5) * 10**6,
            complaints=process.stream.complaints,
        )
        flags = [*timeline.flags]
        if self._stand_in:
            flags.append("powermetrics is a stand-in here, not Apple's: its watts are not measured")
        if self._foreign:
            flags.append("another powermetrics was running: its own load is in these joules")
        if process.lives_on:
            flags.append("powermetrics could not be stopped: it ends by itself at its next record")
        if failure is not None:
            flags.append(f"the measurement is incomplete: {failure}")
            self.unavailable = f"power was not measured to the end: {failure}"
        self.boundary, self.flags = timeline.boundary, tuple(flags)
        return timeline.samples

    def _probe(self) -> bool:
        """Let powermetrics make one record; false, and the reason kept, if it does not."""
        if self._command is None:
            self.unavailable = "powermetrics was not found: only macOS has it"
            return False
        if tuple(self._command) not in _proven:
            process = self._spawn(min(100, self._interval_ms), 1)
            if process is None:
                return False
            process.close()
            _proven.add(tuple(self._command))
        return True

    def _spawn(self, interval_ms: int, records: int) -> PowermetricsProcess | None:
        """A process that has given its first record; None, and the reason kept, if it does not."""
        command = [*(self._command or ()), "-f", "plist", "-b", "0", "-i", str(interval_ms)]
        command += ["-n", str(records), "--samplers", SAMPLERS]
        try:
            process = PowermetricsProcess(command)
        except OSError as error:
            self.unavailable = f"powermetrics cannot be started ({error.strerror})"
            return None
        try:
            if process.wait_for(lambda: bool(process.records), READY_S):
                return process
            self.unavailable = _why_not(process)
        except BaseException:  # Ctrl-C: nobody else knows of a process that runs as root
            process.close()
            raise
        process.close()
        return None


def _why_not(process: PowermetricsProcess) -> str:
    """The reason why a powermetrics gave no record."""
    if re.search("password|sudoers|superuser", process.stderr):
        return f"powermetrics needs root and sudo wants a password: {HOW_TO_ALLOW}"
    if process.stream.complaints:
        return f"powermetrics gives no believable record: {process.stream.complaints[0]}"
    if not process.ended:
        return f"powermetrics gave no record within {READY_S:g} s"
    return process.how_it_ended()


def _cpu_pending(records: Sequence[Record]) -> bool:
    """True if the newest records hold no CPU energy although older ones do."""
    zeros = len(list(takewhile(lambda r: r.joules.get("CPU") == 0, reversed(records))))
    return 0 < zeros < len(records)

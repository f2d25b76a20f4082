"""Power of a Mac's chip, from Apple's own powermetrics."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from itertools import takewhile

from edge.power.meter import Sample
from edge.power.powermetrics_process import PowermetricsProcess
from edge.power.powermetrics_record import Record
from edge.power.powermetrics_timeline import build_timeline, describe_boundary

SAMPLERS = "cpu_power,gpu_power,thermal"
LONGEST_RUN_S = 6 * 3600
DEFAULT_INTERVAL_MS = 500
READY_S = 15.0
PATIENCE_S = 5.0
# On macOS 27.0 the CPU's counter moves every 2.2 s: so long after the end comes its last batch.
BATCH_S = 2.5
SUDOERS = "YOUR_NAME ALL=(root) NOPASSWD: /usr/bin/powermetrics"
HOW_TO_ALLOW = (
    "allow it with `sudo visudo -f /etc/sudoers.d/powermetrics` and the line "
    f"`{SUDOERS}`, or run `sudo -v` in this terminal first, which by default lasts five minutes"
)
APPLES_OWN = "/usr/bin/powermetrics"
STAND_IN = "powermetrics stand-in"
# Commands that have made a record: sudo logs every question, and one per run is enough, until a
# start fails, as it does when sudo's ticket has expired.
_proven: set[tuple[str, ...]] = set()


def find_command() -> list[str] | None:
    """`sudo -n .../powermetrics`, None where either is missing. Never plain sudo: it would ask."""
    powermetrics = shutil.which("powermetrics") or shutil.which(APPLES_OWN)
    sudo = shutil.which("sudo")
    return [sudo, "-n", powermetrics] if powermetrics and sudo else None


def forget_probes() -> None:
    """Let the next meter prove again that powermetrics runs here."""
    _proven.clear()


def is_apples(command: Sequence[str]) -> bool:
    """Whether a command runs the powermetrics of macOS, and not another program of that name."""
    return sys.platform == "darwin" and command[-1] == APPLES_OWN


class PowermetricsMeter:
    """Apple's powermetrics, run through `sudo -n`.

    Another program of that name, as tests have one, works as well; `source` and a flag say that
    its watts are no measurement.

    Args:
        interval_ms: length of a record; None for 500.
        command: what runs powermetrics; None to look for it on the PATH.
        ready_s: how long the first record may take.
        patience_s: how long none may come afterwards (at least five intervals).
        clock_ns: the clock of the samples.
        send_signal: as `os.kill`.
    """

    def __init__(
        self,
        interval_ms: int | None = None,
        command: Sequence[str] | None = None,
        ready_s: float = READY_S,
        patience_s: float = PATIENCE_S,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        send_signal: Callable[[int, int], None] = os.kill,
    ) -> None:
        self.boundary = describe_boundary(["CPU", "GPU", "ANE"])
        self.flags: Sequence[str] = ()
        self.unavailable: str | None = None
        self._interval_ms = interval_ms or DEFAULT_INTERVAL_MS
        self._ready_s = ready_s
        self._patience_s = max(patience_s, 5 * self._interval_ms / 1e3)
        self._clock_ns, self._send_signal = clock_ns, send_signal
        self._process: PowermetricsProcess | None = None
        self._foreign = 0
        self._works = False
        self._command = list(command) if command is not None else find_command()
        self._stand_in = self._command is not None and not is_apples(self._command)
        self.source = STAND_IN if self._stand_in else "powermetrics"
        self._probe()

    def start(self) -> None:
        """Start powermetrics; returns when its first record is whole, or with a reason."""
        if not self._works:
            return
        self.unavailable, self.flags = None, ()
        self._foreign = _count_foreign()
        bound = math.ceil(LONGEST_RUN_S * 1e3 / self._interval_ms)
        self._process = self._spawn(self._interval_ms, bound)
        if self._process is None:
            _proven.discard(tuple(self._command or ()))

    def stop(self) -> Sequence[Sample]:
        """Stop when a record reaches past this moment; everything since `start`."""
        process, self._process = self._process, None
        if process is None:
            return ()
        stop_ns = self._clock_ns()
        wait_s = min(self._patience_s, max(2.0, 3 * self._interval_ms / 1e3))
        try:
            reached = process.wait_for(lambda: (process.latest_end_ns() or 0) >= stop_ns, wait_s)
            if reached:
                process.wait_for(lambda: not _cpu_pending(process), BATCH_S)
            failure = None if reached else process.failure or process.exit_words()
        finally:  # Ctrl-C must not leave it running
            process.close()
        return self._conclude(process, failure)

    def _conclude(self, process: PowermetricsProcess, failure: str | None) -> Sequence[Sample]:
        timeline = build_timeline(
            process.records,
            process.arrivals_ns,
            gap_ns=max(100, self._interval_ms // 5) * 10**6,
            complaints=process.complaints,
            after_loss_ns=0,
        )
        flags = [*timeline.flags]
        if self._stand_in:
            flags.insert(0, _made_up(process.records))
        if self._foreign:
            flags.append("another powermetrics was running: its own load is in these joules")
        if process.lives_on:
            flags.append("powermetrics could not be stopped: it ends by itself at its next record")
        if failure is not None:
            flags.append(f"the measurement is incomplete: {failure}")
            self.unavailable = f"power was not measured to the end: {failure}"
        self.boundary, self.flags = timeline.boundary, tuple(flags)
        return timeline.samples

    def _probe(self) -> None:
        """Whether powermetrics runs here, by letting it make one record."""
        if self._command is None:
            self.unavailable = (
                "powermetrics was not found: it is part of macOS, and other systems have none"
            )
            return
        if tuple(self._command) in _proven:
            self._works = True
            return
        process = self._spawn(min(100, self._interval_ms), 1)
        if process is not None:
            self._works = True
            _proven.add(tuple(self._command))
            process.close()

    def _spawn(self, interval_ms: int, records: int) -> PowermetricsProcess | None:
        """A process that has given its first record; None, and the reason kept, if it does not."""
        command = [*(self._command or ()), "-f", "plist", "-b", "0", "-i", str(interval_ms)]
        command += ["-n", str(records), "--samplers", SAMPLERS]
        patience_s = max(self._patience_s, self._ready_s)
        try:
            process = PowermetricsProcess(command, patience_s, self._clock_ns, self._send_signal)
        except OSError as error:
            self.unavailable = f"powermetrics cannot be started ({error.strerror})"
            return None
        try:
            ready = process.wait_for(lambda: bool(process.records), self._ready_s)
        except BaseException:  # Ctrl-C: nobody else knows of a process that runs as root
            process.close()
            raise
        if ready:
            process.set_patience(self._patience_s)
            return process
        in_time = process.ended
        process.close()
        self.unavailable = _why_not(process, in_time, self._ready_s)
        return None


def _why_not(process: PowermetricsProcess, in_time: bool, ready_s: float) -> str:
    """The sentence for a powermetrics that gave no record."""
    said = process.stderr
    if "password" in said or "sudoers" in said or "superuser" in said:
        return f"powermetrics needs root and sudo wants a password: {HOW_TO_ALLOW}"
    if process.complaints:
        return f"powermetrics gives no record that can be believed: {process.complaints[0]}"
    if not in_time:
        return f"powermetrics gave no record within {ready_s:g} s"
    return process.exit_words()


def _made_up(records: Sequence[Record]) -> str:
    """What to say of a stand-in."""
    models = sorted({r.hw_model for r in records if r.hw_model})
    claim = f" (it claims to be a {' and a '.join(models)})" if models else ""
    return f"powermetrics is a stand-in here and not Apple's{claim}: its watts are not measured"


def _cpu_pending(process: PowermetricsProcess) -> bool:
    """Whether the newest records hold no CPU energy although older ones do."""
    zeros = len(list(takewhile(lambda r: r.joules.get("CPU") == 0, reversed(process.records))))
    return 0 < zeros < len(process.records)


def _count_foreign() -> int:
    import psutil

    return sum(p.info["name"] == "powermetrics" for p in psutil.process_iter(["name"]))

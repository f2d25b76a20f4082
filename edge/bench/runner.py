"""A run: every row once per round, in a fresh process inside the meter's window."""

import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import IO

import msgspec

from edge.bench.cooldown import Cooldown, Idle, NewMeter, cool_down, measure_idle
from edge.bench.engines.engine import MLX_LM
from edge.bench.trial import with_energy
from edge.bench.worker import Done, Failed, Job, Measured, Message
from edge.child import module_command
from edge.device.state import State, read_state
from edge.linux_cpu import KEEP_BLAS, child_environment
from edge.power.meter import Meter, Sample
from edge.profile.trial import Trial

WORKER = module_command("edge.bench.worker")
OnTrial = Callable[[Trial], None]
Progress = Callable[[int, float], None]  # a row's number, and the share of it that is done
OUT_OF_MEMORY = (
    "when memory runs out: close other programs, or choose a smaller artefact or depth (-d)"
)
# Words of MLX's allocator, Metal's command buffers, CUDA and Python.
ALLOCATION_FAILED = re.compile(
    r"unable to allocate|out ?of ?memory|insufficient memory|MemoryError|bad_alloc", re.IGNORECASE
)


@dataclass
class Outcome:
    """A worker's report; `bad_end` is the reason where its process died after `done`."""

    trials: list[Trial] = field(default_factory=list)
    done: Done | None = None
    failure: str | None = None
    bad_end: str | None = None


@dataclass(frozen=True)
class ProcessRun:
    """One row in one round; `power_lost` is why a meter that had worked did not start."""

    round: int
    outcome: Outcome
    meter: Meter
    samples: Sequence[Sample]
    before: State
    after: State
    cooldown: Cooldown
    power_lost: str | None = None


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does: with its worker and its meter."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_job(job: Job, timeout_s: float, on_trial: OnTrial = lambda _: None) -> Outcome:
    """Runs a worker, which is killed after `timeout_s`.

    A worker that crashes, hangs or sends invalid JSON gives an outcome with a failure; nothing
    is raised, so that the other rows still run.
    """
    outcome = Outcome()
    environment = dict(child_environment())
    if job.engine == MLX_LM:
        environment[KEEP_BLAS] = "1"  # it keeps the BLAS that MLX comes with
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
        )
        watchdog = threading.Timer(min(timeout_s, threading.TIMEOUT_MAX), process.kill)
        watchdog.daemon = True  # Ctrl-C during its start must not wait for it
        try:
            watchdog.start()
            _follow(process, job, outcome, on_trial)
        except BaseException:  # Ctrl-C too: the worker must not go on computing
            process.kill()
            raise
        finally:
            timed_out = not watchdog.is_alive()
            watchdog.cancel()
            process.wait()
        end = _end(process.returncode, log)
    if outcome.done is not None:
        outcome.bad_end = f"after its work {end}" if process.returncode else None
    elif timed_out and outcome.failure is None:
        outcome.failure = (
            f"the worker was stopped after {timeout_s:g} s (raise --timeout to wait longer)"
        )
    else:
        outcome.failure = outcome.failure or end
    return outcome


def _follow(
    process: subprocess.Popen[bytes], job: Job, outcome: Outcome, on_trial: OnTrial
) -> None:
    """Sends the job, reads messages until the worker closes its stdout."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError):  # it died at once: `_end` has the reason
        process.stdin.write(msgspec.json.encode(job))
        process.stdin.close()
    for line in process.stdout:
        try:
            message: Message = msgspec.json.decode(line, type=Message)
        except (msgspec.DecodeError, UnicodeDecodeError):
            sent = line.decode("utf-8", "replace").strip()[:200]
            outcome.failure = f"the worker sent an invalid message: {sent}"
            process.kill()
            continue
        if isinstance(message, Measured):
            outcome.trials.append(message.trial)
            on_trial(message.trial)
        elif isinstance(message, Failed):
            outcome.failure = _explained(message.reason)
        else:
            outcome.done = message


def _end(returncode: int, log: IO[bytes]) -> str:
    """How a worker's process ended, with the last line on its stderr, usually the reason."""
    if returncode == -signal.SIGKILL:
        return f"the worker was killed (signal 9), as systems do {OUT_OF_MEMORY}"
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
    last = next((f" ({line[:300]})" for line in reversed(lines) if line), "")
    how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    return _explained(f"the worker died with {how}{last}")


def _explained(failure: str) -> str:
    if not ALLOCATION_FAILED.search(failure):
        return failure
    return f"{failure.rstrip('.')}, which happens {OUT_OF_MEMORY}"


def split_trials(repetitions: int, rounds: int) -> tuple[int, int]:
    """Rounds, at most one per repetition, and the same number of trials in each, rounded up."""
    rounds = min(repetitions, rounds)
    return rounds, -(-repetitions // rounds)


@dataclass
class Run:
    """A run over all rows, with one job each; a row that failed is not run again.

    With `has_power` a meter worked before; `warn` is called once if it no longer starts.
    """

    jobs: Sequence[Job]
    rounds: int
    new_meter: NewMeter
    seed: int = 0
    timeout_s: float = 3600
    cooldown_s: float = 60
    idle_s: float = 10
    has_power: bool = False
    warn: Callable[[str], None] = lambda _: None
    # The rows' numbers in running order, a list per round; and the processes of each row.
    order: list[list[int]] = field(init=False)
    runs: list[list[ProcessRun]] = field(init=False)
    idle_before: Idle | None = None
    idle_after: Idle | None = None
    finished: bool = False

    def __post_init__(self) -> None:
        # Each round has its own permutation: heat, caches and fragmented memory depend on the row
        # before, and a fixed order would make that part of the result.
        rng, rows = random.Random(f"order {self.seed}"), range(len(self.jobs))
        self.order = [rng.sample(rows, len(rows)) for _ in range(self.rounds)]
        self.runs = [[] for _ in rows]

    @property
    def idle_w(self) -> float | None:
        known = [idle.watts for idle in (self.idle_before, self.idle_after) if idle is not None]
        return sum(known) / len(known) if known else None

    def run_rounds(self, on_process: Callable[[int], None], progress: Progress) -> None:
        """Measures; the callbacks get a row's number after each process and each trial."""
        self.idle_before = measure_idle(self.idle_s, self.new_meter)
        for round_number, order in enumerate(self.order):
            for row in order:
                if not any(run.outcome.failure for run in self.runs[row]):
                    self.runs[row].append(self._process(row, round_number, progress))
                    on_process(row)
                    if self.runs[row][-1].outcome.failure:
                        progress(row, 1.0)
        if self.idle_before is not None:
            cool_down(self.cooldown_s, self.new_meter, self.idle_before)
            self.idle_after = measure_idle(self.idle_s, self.new_meter)
        self.finished = True

    def _process(self, row: int, round_number: int, progress: Progress) -> ProcessRun:
        cooldown = cool_down(self.cooldown_s, self.new_meter, self.idle_before)
        job = replace(self.jobs[row], round=round_number)

        def on_trial(trial: Trial) -> None:
            progress(row, (round_number + job.share_done(trial.repetition)) / self.rounds)

        before, (meter, lost) = read_state(), self._started_meter()
        try:
            outcome = run_job(job, self.timeout_s, on_trial)
        finally:  # on Ctrl-C too: a meter may have a process
            samples = meter.stop()
        after = read_state()
        outcome.trials = [with_energy(t, samples, meter.source) for t in outcome.trials]
        return ProcessRun(round_number, outcome, meter, samples, before, after, cooldown, lost)

    def _started_meter(self) -> tuple[Meter, str | None]:
        """A running meter, and the reason where the one that had worked did not start."""
        meter = self.new_meter()
        meter.start()
        if meter.unavailable is None or not self.has_power:
            return meter, None
        lost = meter.unavailable
        meter = self.new_meter()  # the next source, if any
        meter.start()
        if not any(run.power_lost for runs in self.runs for run in runs):
            instead = f"; {meter.source} goes on" if meter.unavailable is None else ""
            self.warn(f"power is no longer measured: {lost}{instead}")
        return meter, lost

"""A run: every row once per round, in a fresh process inside the meter's window."""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import IO

import msgspec
import psutil

from edge.bench.cooldown import Cooldown, Idle, NewMeter, cool_down, measure_idle
from edge.bench.engines.engine import MLX_LM
from edge.bench.trial import with_energy
from edge.bench.worker import Done, Failed, Job, Measured, Message
from edge.child import module_command
from edge.device.state import State, read_state
from edge.distributed import MLX_RANK
from edge.errors import EdgeError
from edge.linux_cpu import KEEP_BLAS, child_environment
from edge.power.meter import Meter, Sample
from edge.profile.baseline import batch_of
from edge.profile.trial import Trial

WORKER = module_command("edge.bench.worker")
LAST = object()  # a worker has ended
OnTrial = Callable[[Trial], None]
Progress = Callable[[int, float], None]  # a row's number, and the share of it that is done
OUT_OF_MEMORY = (
    "when memory runs out: close other programs, or choose a smaller artefact, depth (-d) or -npl"
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
    """SIGTERM ends this process as Ctrl-C does: with its worker and its meter.

    So does SIGHUP, of a lost ssh, unless nohup ignores it.
    """
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {n: signal.signal(n, lambda number, _: sys.exit(128 + number)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_job(job: Job, timeout_s: float, on_trial: OnTrial = lambda _: None) -> Outcome:
    """Runs a worker, which is killed after `timeout_s`.

    A worker that crashes, hangs or sends invalid JSON gives an outcome with a failure; nothing
    is raised, so that the other rows still run.
    """
    outcome = Outcome()
    for _ in _turns(job, timeout_s, outcome, on_trial):
        pass
    return outcome


def run_in_turns(
    jobs: Sequence[Job], timeout_s: float, on_trials: Sequence[OnTrial]
) -> list[Outcome]:
    """Starts a worker for each job, then runs their trials in turn; one computes at a time.

    Every turn has the reverse order of the one before it (A B, B A, A B), so that a steady drift
    favours none. Workers with a failure drop out.
    """
    outcomes = [Outcome() for _ in jobs]
    with ExitStack() as stack:
        waiting = []
        for job, outcome, on_trial in zip(jobs, outcomes, on_trials, strict=True):
            paced, limit_s = replace(job, in_turns=True), timeout_s * len(jobs)
            waiting.append(stack.enter_context(closing(_turns(paced, limit_s, outcome, on_trial))))
        while waiting:
            waiting = [turns for turns in waiting if next(turns, LAST) is not LAST][::-1]
    return outcomes


def _turns(
    job: Job, timeout_s: float, outcome: Outcome, on_trial: OnTrial
) -> Generator[None, None, None]:
    """Runs a worker; one in turns stops here after its warm-up and after every trial."""
    environment = environment_of(job.python)
    if job.engine == MLX_LM:
        environment[KEEP_BLAS] = "1"  # it keeps the BLAS that MLX comes with
    if job.is_split:
        environment[MLX_RANK] = "0"
    command = (job.python, *WORKER[1:]) if job.python else WORKER
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
            )
        except OSError as error:  # of --vs, whose interpreter has gone
            outcome.failure = f"the worker did not start ({error})"
            return
        with process:
            watchdog = threading.Timer(min(timeout_s, threading.TIMEOUT_MAX), process.kill)
            watchdog.daemon = True  # Ctrl-C during its start must not wait for it
            try:
                watchdog.start()
                yield from _follow(process, job, outcome, on_trial)
            except BaseException:  # Ctrl-C too: the worker must not go on computing
                process.kill()
                raise
            finally:
                timed_out = not watchdog.is_alive()
                watchdog.cancel()
        end = _end(process.returncode, log)
    if outcome.done is not None:
        outcome.bad_end = f"after its work {end}" if process.returncode else None
    elif timed_out and outcome.failure is None:
        outcome.failure = (
            f"the worker was stopped after {timeout_s:g} s (raise --timeout to wait longer)"
        )
    else:
        outcome.failure = outcome.failure or end


def environment_of(python: str) -> dict[str, str]:
    """Environment variables of a worker; another interpreter must not find our packages."""
    environment = child_environment()
    if python:
        for name in ("PYTHONPATH", "PYTHONHOME"):
            environment.pop(name, None)
    return environment


def _follow(
    process: subprocess.Popen[bytes], job: Job, outcome: Outcome, on_trial: OnTrial
) -> Iterator[None]:
    """Sends the job, reads messages until the worker closes its stdout; yields at its turns."""
    assert process.stdin is not None and process.stdout is not None
    _send(process.stdin, msgspec.json.encode(job) + b"\n")
    if not job.in_turns:
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
            if job.in_turns and message.trial.repetition + 1 >= job.warmups:
                yield
                _send(process.stdin, b"\n")
        elif isinstance(message, Failed):
            outcome.failure = _explained(message.reason)
        else:
            outcome.done = message


def _send(stdin: IO[bytes], line: bytes) -> None:
    with suppress(BrokenPipeError):  # it died at once: `_end` has the reason
        os.write(stdin.fileno(), line)


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


def groups_of(jobs: Sequence[Job], baseline: str | None) -> list[Hashable]:
    """For each job what those have in common that take turns.

    That is the workload, with --vs all else, and with a batch as `baseline` all but the batch.
    """
    if batch_of(baseline) is not None:
        one = [msgspec.structs.replace(job.workload, batch=1) for job in jobs]
        return [(test, job.path, job.engine) for test, job in zip(one, jobs, strict=True)]
    has_arms = any(job.arm for job in jobs)
    return [(j.workload, j.path, j.engine) if has_arms else j.workload for j in jobs]


def fit_together(groups: Sequence[Hashable], file_bytes: Sequence[int | None]) -> bool:
    """True if there is memory for the rows of each group at once, twice the size of their files.

    Twice, as MLX computes in float32 on a CPU, and caches and buffers come on top.
    """
    needs: dict[Hashable, int] = {}
    for group, size in zip(groups, file_bytes, strict=True):
        needs[group] = needs.get(group, 0) + 2 * (size or 0)
    return max(needs.values()) <= psutil.virtual_memory().available


@dataclass
class Run:
    """A run over all rows, with one job each; a row that failed is not run again.

    With `has_power` a meter worked before; `warn` is called once if it no longer starts. With
    `groups`, one per job, the processes of a round with the same one take turns. After the last
    round `wants_more` says whether there is another.
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
    groups: Sequence[Hashable] | None = None
    wants_more: Callable[[], bool] = lambda: False
    # The rows' numbers in running order, a list per round; and the processes of each row.
    order: list[list[int]] = field(init=False)
    runs: list[list[ProcessRun]] = field(init=False)
    idle_before: Idle | None = None
    idle_after: Idle | None = None
    finished: bool = False

    def __post_init__(self) -> None:
        # Each round has its own permutation: heat, caches and fragmented memory depend on the row
        # before, and a fixed order would make that part of the result.
        self._rng = random.Random(f"order {self.seed}")
        self.order = [self._new_order() for _ in range(self.rounds)]
        self.runs = [[] for _ in self.jobs]

    def _new_order(self) -> list[int]:
        return self._rng.sample(range(len(self.jobs)), len(self.jobs))

    @property
    def in_turns(self) -> bool:
        return self.groups is not None

    @property
    def idle_w(self) -> float | None:
        known = [idle.watts for idle in (self.idle_before, self.idle_after) if idle is not None]
        return sum(known) / len(known) if known else None

    def run_rounds(self, on_process: Callable[[int], None], progress: Progress) -> None:
        """Measures; the callbacks get a row's number after each process and each trial."""
        self.idle_before = measure_idle(self.idle_s, self.new_meter)
        done = 0
        while done < self.rounds:
            for rows in self._groups(self.order[done]):
                for row, ran in zip(rows, self._processes(rows, done, progress), strict=True):
                    self.runs[row].append(ran)
                    on_process(row)
                    if ran.outcome.failure:
                        progress(row, 1.0)
            done += 1
            if done == self.rounds and self.wants_more():
                self.order.append(self._new_order())
                self.rounds += 1
        if self.idle_before is not None:
            cool_down(self.cooldown_s, self.new_meter, self.idle_before)
            self.idle_after = measure_idle(self.idle_s, self.new_meter)
        self.finished = True

    def _groups(self, order: Sequence[int]) -> Iterator[list[int]]:
        """Rows that run together, without those that failed; alone unless they take turns."""
        groups = [[row] for row in order]
        if (kinds := self.groups) is not None:
            groups = [[r for r in order if kinds[r] == each] for each in dict.fromkeys(kinds)]
        for group in groups:
            going = [r for r in group if not any(run.outcome.failure for run in self.runs[r])]
            if going:
                yield going

    def _processes(
        self, rows: Sequence[int], round_number: int, progress: Progress
    ) -> list[ProcessRun]:
        cooldown = cool_down(self.cooldown_s, self.new_meter, self.idle_before)
        jobs = [replace(self.jobs[row], round=round_number) for row in rows]

        def on_trial(row: int, trial: Trial) -> None:
            done = self.jobs[row].share_done(trial.repetition)
            progress(row, (round_number + done) / self.rounds)

        on_trials = [partial(on_trial, row) for row in rows]
        before, (meter, lost) = read_state(), self._started_meter()
        try:
            if self.in_turns:
                outcomes = run_in_turns(jobs, self.timeout_s, on_trials)
            else:
                outcomes = [run_job(jobs[0], self.timeout_s, on_trials[0])]
        finally:  # on Ctrl-C too: a meter may have a process
            samples = meter.stop()
        after = read_state()
        if jobs[0].is_split and (failure := outcomes[0].failure):
            raise EdgeError(
                f"{failure.rstrip('.')}; a run over several devices ends with its first failure."
            )
        # After another source has taken over, the idle power is not of the same rails.
        idle_w = self.idle_before.watts if self.idle_before and not lost else None
        for job, outcome in zip(jobs, outcomes, strict=True):
            measured = samples, meter.source, idle_w, job.workload.batch
            outcome.trials = [with_energy(trial, *measured) for trial in outcome.trials]
        return [
            ProcessRun(round_number, outcome, meter, samples, before, after, cooldown, lost)
            for outcome in outcomes
        ]

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

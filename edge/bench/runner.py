"""Run one row in a fresh process and collect what it says."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from edge.bench.engines.engine import MLX_LM, EngineFacts
from edge.bench.job import Job
from edge.bench.trial import Trial
from edge.child import module_command
from edge.linux_cpu import KEEP_BLAS, child_environment

WORKER = module_command("edge.bench.worker")
OUT_OF_MEMORY = (
    "when memory runs out: close other programs, or choose a smaller artefact or depth (-d)"
)
# MLX's allocator, Metal's command buffers, CUDA, Python.
ALLOCATION_FAILED = re.compile(
    r"unable to allocate|out ?of ?memory|insufficient memory|MemoryError|bad_alloc", re.IGNORECASE
)


@dataclass
class Outcome:
    """What a worker reported; `failure` is None if it finished.

    `bad_end` says how its process ended if not well, though its work was reported.
    """

    job: Job
    load_s: float | None = None
    facts: EngineFacts | None = None
    trials: list[Trial] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    peak_device_bytes: int | None = None
    failure: str | None = None
    bad_end: str | None = None
    logits: dict[str, Any] | None = None


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does: its worker and its meter end with it."""

    def stop(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_job(
    job: Job,
    timeout_s: float,
    on_trial: Callable[[Trial], None] = lambda _: None,
    command: Sequence[str] = WORKER,
) -> Outcome:
    """Start a worker, follow it to its end.

    A worker that dies, hangs or speaks nonsense gives a failed outcome with the reason; it
    never raises, so that the other rows still run.

    Args:
        job: what it shall do.
        timeout_s: after this long it is killed.
        on_trial: told every trial as it ends.
        command: the worker's command line.
    """
    outcome = Outcome(job)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            errors="replace",
            env=_environment(job),
        )
        watchdog = threading.Timer(min(timeout_s, threading.TIMEOUT_MAX), process.kill)
        watchdog.daemon = True  # Ctrl-C while it starts must not leave us waiting for it
        try:
            watchdog.start()
            finished = _follow(process, outcome, on_trial)
        except BaseException:  # Ctrl-C included: no orphan may go on computing
            process.kill()
            raise
        finally:
            timed_out = not watchdog.is_alive()
            watchdog.cancel()
            process.wait()
        if finished and process.returncode != 0:
            outcome.bad_end = f"after its work {_end(process.returncode, _tail(log))}"
        elif not finished and outcome.failure is None:
            outcome.failure = _death(process.returncode, timed_out, timeout_s, _tail(log))
    return outcome


def _environment(job: Job) -> dict[str, str]:
    """Ours, but that mlx-lm keeps the BLAS that MLX comes with."""
    return {**child_environment(), **({KEEP_BLAS: "1"} if job.engine == MLX_LM else {})}


def _follow(
    process: subprocess.Popen[str], outcome: Outcome, on_trial: Callable[[Trial], None]
) -> bool:
    """Read messages until the worker closes its stdout; whether it said it was done."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(outcome.job.to_dict()))
        process.stdin.close()
    except BrokenPipeError:
        pass  # it died at once; its exit code tells more
    finished = False
    for line in process.stdout:
        try:
            finished = _take(json.loads(line), outcome, on_trial) or finished
        except (ValueError, TypeError, KeyError, AttributeError):
            outcome.failure = f"the worker said something that is no message: {line.strip()[:200]}"
            process.kill()
    return finished


def _take(message: dict[str, Any], outcome: Outcome, on_trial: Callable[[Trial], None]) -> bool:
    event = message.pop("event")
    if event == "trial":
        trial = Trial.from_dict(message)
        outcome.trials.append(trial)
        on_trial(trial)
    elif event == "failed":
        outcome.failure = _explained(message["reason"])
    elif event == "done":
        outcome.peak_memory_bytes = message["peak_memory_bytes"]
        outcome.peak_device_bytes = message.get("peak_device_bytes")
        outcome.load_s = message["load_s"]
        outcome.logits = message.get("logits")
        outcome.facts = EngineFacts(**message["facts"])
        return True
    return False


def _death(returncode: int, timed_out: bool, timeout_s: float, last_line: str) -> str:
    if timed_out:
        return f"the worker was stopped after {timeout_s:g} s (raise --timeout to wait longer)"
    if returncode == -signal.SIGKILL:
        return f"the worker was killed (signal 9), as a system does {OUT_OF_MEMORY}"
    return _explained(_end(returncode, last_line))


def _end(returncode: int, last_line: str) -> str:
    how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    return f"the worker died with {how}{f' ({last_line})' if last_line else ''}"


def _explained(failure: str) -> str:
    """A failure with what to do, if it is that memory ran out."""
    if not ALLOCATION_FAILED.search(failure):
        return failure
    return f"{failure.rstrip('.')}, which is what happens {OUT_OF_MEMORY}"


def _tail(log: Any) -> str:
    """The last line on stderr, usually the reason."""
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").splitlines()
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

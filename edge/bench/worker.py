"""The process that runs one row: `python -m edge.bench.worker`, a `Job` on a line of stdin.

Its answers are JSON lines on stdout: `Measured` after each repetition, then `Done` or `Failed`.
With --about it says which protocol it speaks, for a run of another environment (--vs).
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge.bench.engines.engine import LLAMA_CPP, MLX, MLX_LM, SERVER, Engine
from edge.bench.gate import (
    POSITIONS,
    check_batch,
    check_shapes,
    logits_digest,
    pieces_bound,
)
from edge.bench.trial import run_trial
from edge.bench.workload import plan_tokens
from edge.device.memory import peak_bytes, wired
from edge.device.software import software_versions
from edge.errors import EdgeError
from edge.profile.gate import Gate
from edge.profile.profile import EngineFacts, Workload
from edge.profile.trial import Trial

# Raised when a worker's questions or answers change so that an older run does not understand them.
PROTOCOL = 2
ABOUT = "--about"
# A process that starts, loads the demo and warms up; and a trial that has no least time.
START_S, LEAST_TRIAL_S = 3.0, 0.1


@dataclass(frozen=True)
class Job:
    """One row's work in one process.

    `repetitions` are the counted trials of this process; each timed window lasts at least
    `min_window_s`. `threads` are llama.cpp's, `kv_bits` those of our network's cache. `as_is` is
    a file of any architecture that its engine knows, without a checkpoint to compare with. For a
    server `path` is its address and `served` the model to ask it for. With `in_turns` the worker
    waits for a line on stdin before each counted trial, and once more before its last message.
    `python` is the interpreter of another environment that runs it, `arm` that one's name.
    `longest` is the context that the model was trained with; with `check` the first round reports
    what the gate compares. With `is_split` the process is rank 0 of mlx.launch.
    """

    engine: str
    path: str
    workload: Workload
    vocab_size: int
    seed: int
    repetitions: int
    warmups: int
    threads: int
    kv_bits: int | None = None
    min_window_s: float = 0.0
    round: int = 0
    served: str = ""
    as_is: bool = False
    in_turns: bool = False
    python: str = ""
    arm: str = ""
    longest: int = 0
    check: bool = True
    is_split: bool = False

    @property
    def windows(self) -> int:
        """Timed windows of a trial."""
        return (self.workload.prompt > 0) + (self.workload.generate > 0)

    @property
    def process_s(self) -> float:
        """About how long this takes where a pass is shorter than the window."""
        return START_S + self.repetitions * self._trial_s

    @property
    def _trial_s(self) -> float:
        return max(self.windows * self.min_window_s, LEAST_TRIAL_S)

    def share_done(self, repetition: int) -> float:
        """Share of the work that is done after a repetition, of which warm-ups are the first."""
        counted = max(repetition + 1 - self.warmups, 0)
        return (START_S + counted * self._trial_s) / self.process_s


class Measured(msgspec.Struct, tag=True):
    """After one repetition."""

    trial: Trial


class Failed(msgspec.Struct, tag=True):
    """After an error."""

    reason: str


class Done(msgspec.Struct, tag=True):
    """After all repetitions; `logits` and `gate` are the first round's.

    Loading and memory are None for a server, `warnings` are about its answers.
    """

    load_s: float | None
    peak_memory_bytes: int | None
    peak_device_bytes: int | None
    facts: EngineFacts
    logits: dict[str, Any] | None = None
    gate: Gate | None = None
    warnings: list[str] = []


class About(msgspec.Struct):
    """The protocol and the versions of a worker."""

    protocol: int
    software: dict[str, str]


Message = Measured | Failed | Done
Send = Callable[[Message], None]


def main() -> int:
    """Reads the job, runs it and reports; output of C libraries goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: Message) -> None:
        print(msgspec.json.encode(message).decode(), file=channel, flush=True)

    if ABOUT in sys.argv:
        print(msgspec.json.encode(About(PROTOCOL, software_versions())).decode(), file=channel)
        return 0
    try:
        job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
        (_ask_server if job.engine == SERVER else _work)(job, send)
    except EdgeError as error:
        send(Failed(str(error)))
        return 1
    except Exception as error:  # the row fails with its reason, the run goes on
        send(Failed(f"{type(error).__name__}: {error}"))
        raise
    return 0


def _work(job: Job, send: Send) -> None:
    """Checks the memory, keeps the model resident where the system allows it, measures."""
    context_tokens = job.workload.context_tokens
    running_bytes, memory_warning = check_memory(job, context_tokens)
    with ExitStack() as stack:
        if running_bytes is not None:
            stack.enter_context(wired(running_bytes))
        plan = plan_tokens(job.workload, job.vocab_size, job.seed)
        begin_ns = time.monotonic_ns()
        engine = open_engine(job, max(context_tokens, POSITIONS))
        stack.callback(engine.close)
        if job.is_split:
            from edge.model.follow import Kind, end

            stack.callback(end, Kind.ANOTHER)
        load_s = (time.monotonic_ns() - begin_ns) / 1e9
        if job.workload.depth:
            engine.prefill(plan.depth)

        def measure(least_s: float, is_warmup: bool) -> Trial:
            trial = run_trial(engine, plan, job.workload, least_s)
            if is_warmup and not np.isfinite(engine.last_logits()).all():
                damaged = "the weights are damaged; convert again."
                raise EdgeError(f"the logits are not finite: {damaged}")
            return trial

        _send_trials(job, send, measure)
        # The peak first: looking up the facts takes memory of its own.
        device_bytes = engine.peak_device_bytes()
        most_bytes = max(peak_bytes(), device_bytes)
        facts = engine.facts()
        if memory_warning:
            facts.remarks.append(memory_warning.rstrip("."))
        done = Done(load_s, most_bytes, device_bytes or None, facts)
        if job.round == 0 and job.check:
            bound = pieces_bound(job.engine, job.kv_bits, job.as_is)
            one, vocab_size = engine.alone(), job.vocab_size
            done.gate = check_shapes(one, job.workload, vocab_size, job.longest, bound)
            if job.workload.batch > 1:
                done.gate = check_batch(engine, one, job.workload, vocab_size, done.gate)
            if not job.as_is:
                done.logits = logits_digest(one, vocab_size)
        send(done)


def _ask_server(job: Job, send: Send) -> None:
    """The trials of a running server, without loading anything here."""
    from edge.bench.server import LOCAL, REMOTE, Client, ServedTrials, is_local

    served = ServedTrials(Client(job.path, job.served), job.workload)
    served.fit_prompt()
    _send_trials(job, send, served.run)
    where = LOCAL if is_local(job.path) else REMOTE
    send(Done(None, None, None, served.facts(where), warnings=served.warnings()))


def check_memory(job: Job, context_tokens: int) -> tuple[int | None, str | None]:
    """Bytes that a running engine needs, and a warning where memory is short.

    None for llama.cpp, which maps its file and reports a lack of memory itself. An EdgeError
    where the model does not fit, or its files cannot be read.
    """
    if job.engine == LLAMA_CPP:
        return None, None
    from edge.model.follow import part_here
    from edge.model.load import compute_dtype, read_directory
    from edge.model.memory import check_fits, check_weights_fit

    path = Path(job.path)
    if job.as_is:
        need, memory_warning = check_weights_fit(path, compute_dtype())
        return need.running_bytes, memory_warning
    _, config = read_directory(path)
    own_bits = job.kv_bits if job.engine == MLX else None
    devices = part_here().size if job.is_split else 1
    how = context_tokens, own_bits, job.workload.batch, devices
    need, memory_warning = check_fits(path, config, compute_dtype(), *how)
    return need.running_bytes, memory_warning


def open_engine(job: Job, context_tokens: int) -> Engine:
    """Loads the artefact; an EdgeError where that fails.

    Imports the library of that engine alone, because memory is measured. llama.cpp's cache does
    not grow: it has `context_tokens` positions for each sequence.
    """
    path, batch = Path(job.path), job.workload.batch
    if job.engine == LLAMA_CPP:
        from edge.bench.engines.llama_cpp import open_gguf

        return open_gguf(path, context_tokens, job.threads, batch)
    if job.engine == MLX_LM:
        from edge.bench.engines.mlx_lm import PeerBatch, open_any, open_peer

        peer = open_any(path) if job.as_is else open_peer(path)
        return PeerBatch(peer, batch) if batch > 1 else peer
    if batch > 1:
        from edge.bench.engines.mlx_batch import open_batch

        return open_batch(path, job.kv_bits, batch)
    from edge.bench.engines.mlx import open_ours

    return open_ours(path, job.kv_bits, job.is_split)


def _send_trials(job: Job, send: Send, measure: Callable[[float, bool], Trial]) -> None:
    """Warm-ups of one pass of the full shape, then the counted trials."""
    for number in range(job.warmups + job.repetitions):
        warmup = number < job.warmups
        if not warmup:
            _wait_for_turn(job)
        trial = measure(0.0 if warmup else job.min_window_s, warmup)
        where = {"repetition": number, "round": job.round, "warmup": warmup}
        send(Measured(msgspec.structs.replace(trial, **where)))
    _wait_for_turn(job)


def _wait_for_turn(job: Job) -> None:
    if job.in_turns and not sys.stdin.buffer.readline():
        raise EdgeError("the run was stopped.")


if __name__ == "__main__":
    sys.exit(main())

"""The process that runs one row: `python -m edge.bench.worker`, a job on stdin.

Answers with JSON lines on stdout: one `trial` per repetition, then `done` with the
engine's facts and the peak memory, or `failed` with a sentence. Whatever libraries
print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from edge.bench.engines.engine import Engine, check_memory, open_engine
from edge.bench.gate import POSITIONS, logits_digest
from edge.bench.job import Job
from edge.bench.trial import ONE_PASS, Window, run_trial
from edge.bench.workload import TokenPlan, plan_tokens
from edge.device.peak import peak_bytes as process_peak_bytes
from edge.errors import EdgeError


def main() -> int:
    """Read the job, run it, report."""
    channel = _private_stdout()
    try:
        _work(Job.from_dict(json.load(sys.stdin)), channel)
    except EdgeError as error:
        _send(channel, "failed", reason=str(error))
        return 1
    except Exception as error:  # the row fails with its reason, the run goes on
        _send(channel, "failed", reason=f"{type(error).__name__}: {error}")
        raise
    return 0


def _work(job: Job, channel: TextIO) -> None:
    """Check the memory, keep the model resident where that can be asked for, measure."""
    from edge.device.memory import wired

    path, context_tokens = Path(job.path), job.workload.context_tokens
    fit = check_memory(job.engine, path, context_tokens, job.kv_bits)
    if fit is None:
        _measure(job, channel)
        return
    need, warning = fit
    with wired(need.running_bytes):
        _measure(job, channel, (warning.rstrip("."),) if warning else ())


def _measure(job: Job, channel: TextIO, remarks: tuple[str, ...] = ()) -> None:
    plan = plan_tokens(job.workload, job.vocab_size, job.seed)
    begin_ns = time.monotonic_ns()
    engine = _open(job)
    load_s = (time.monotonic_ns() - begin_ns) / 1e9
    try:
        _measure_on(engine, job, plan, channel, load_s, remarks)
    finally:
        engine.close()


def _measure_on(
    engine: Engine,
    job: Job,
    plan: TokenPlan,
    channel: TextIO,
    load_s: float,
    remarks: tuple[str, ...],
) -> None:
    if plan.depth:
        engine.prefill(plan.depth)
    _run_trials(job, engine, plan, channel)
    # The peak first: looking up the facts takes memory of its own.
    device_bytes = engine.peak_device_bytes()
    peak_bytes = max(process_peak_bytes(), device_bytes)
    facts = engine.facts()
    facts = replace(facts, remarks=(*facts.remarks, *remarks))
    _send(
        channel,
        "done",
        load_s=load_s,
        peak_memory_bytes=peak_bytes,
        peak_device_bytes=device_bytes or None,
        facts=asdict(facts),
        logits=(
            logits_digest(engine, job.vocab_size, job.workload.context_tokens)
            if job.round == 0
            else None
        ),
    )


def _run_trials(job: Job, engine: Engine, plan: TokenPlan, channel: TextIO) -> None:
    """Warm up with one pass of the full shape; then the trials that count."""
    clock, window = time.monotonic_ns, Window(job.min_window_s, job.max_passes)
    for number in range(job.warmups + job.repetitions):
        warmup = number < job.warmups
        passes = ONE_PASS if warmup else window
        trial = run_trial(
            engine, plan, number, warmup, clock, passes, job.round, job.workload.joint
        )
        if number == 0:
            _check(bool(np.isfinite(engine.last_logits()).all()))
        _send(channel, "trial", **asdict(trial))


def _open(job: Job) -> Engine:
    context_tokens = max(job.workload.context_tokens, POSITIONS)
    return open_engine(job.engine, Path(job.path), context_tokens, job.threads, job.kv_bits)


def _check(finite: bool) -> None:
    if not finite:
        raise EdgeError("the logits are not finite: the weights are damaged; convert them again.")


def _private_stdout() -> TextIO:
    """Keep stdout for messages; C libraries that write to it reach stderr instead."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _send(channel: TextIO, event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), file=channel, flush=True)


if __name__ == "__main__":
    sys.exit(main())

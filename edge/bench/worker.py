"""The process that runs one row: `python -m edge.bench.worker`, a job on stdin.

Answers with JSON lines on stdout: one `trial` per repetition, then `done` with the
engine's facts and the peak memory, or `failed` with a sentence. Whatever libraries
print goes to stderr.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import asdict
from typing import Any, TextIO

from edge.bench.engines.registry import open_engine
from edge.bench.job import Job
from edge.bench.trial import run_trial
from edge.bench.workload import plan_tokens
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
    from pathlib import Path

    workload = job.workload
    plan = plan_tokens(workload, job.vocab_size, job.seed)
    begin_ns = time.monotonic_ns()
    engine = open_engine(
        job.engine, Path(job.path), workload.context_tokens, job.threads, job.fuse, job.pad
    )
    load_s = (time.monotonic_ns() - begin_ns) / 1e9
    if plan.depth:
        engine.prefill(plan.depth)
    for number in range(job.warmups + job.repetitions):
        warmup = number < job.warmups
        trial = run_trial(engine, plan, number, warmup, time.monotonic_ns)
        if number == 0:
            _check(engine.logits_are_finite())
        _send(channel, "trial", **asdict(trial))
    # The peak first: looking up the facts takes memory of its own.
    peak_bytes = max(peak_resident_bytes(), engine.peak_device_bytes())
    facts = asdict(engine.facts())
    _send(channel, "done", load_s=load_s, peak_memory_bytes=peak_bytes, facts=facts)


def peak_resident_bytes() -> int:
    """The most memory this process has had resident; the unit differs by system."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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

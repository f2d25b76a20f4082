"""Looks for what makes the rates of one GGUF file differ from process to process.

    python benchmarks/process_spread.py models/demo/gguf-q6_k.gguf spread.jsonl --rounds 30

Each round runs one process per setting, in seeded order, and adds a line of JSON for each; started
again it goes on. Then it prints per setting, all as standard deviations of the decode rate in per
cent:

    between    of the processes, without what their own trials explain
    within     of the trials of one process
    typical    of the processes' median time per token, which a few long waits do not move
    stalls     share of the time in tokens that take more than 3 times the median
    clock      correlation of the rate with that of a fixed loop just before the process

Large `between` with small `typical` and many stalls means threads that wait for one that is not
running: it should vanish with one thread, and change with threads that sleep instead of spinning.
Large `typical` without stalls means memory that lies differently (compare "read, not mapped" with
the rest) or a clock that changes (`clock` near 1).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apart import write_json
from error_rates import processor_ticks

from edge.bench.runner import run_job
from edge.bench.worker import Job
from edge.device.describe import usable_cores
from edge.formats.gguf import read_gguf
from edge.llama_cpp.session import NO_MMAP
from edge.profile.profile import Workload

STALL = 3.0
# Threads (None: all) and environment variables; OMP_ is of libgomp, which llama.cpp waits with.
SETTINGS: dict[str, tuple[int | None, dict[str, str]]] = {
    "as edge runs it": (None, {}),
    "1 thread": (1, {}),
    "read, not mapped": (None, {NO_MMAP: "1"}),
    "waits asleep": (None, {"OMP_WAIT_POLICY": "passive"}),
    "bound to cores": (None, {"OMP_PROC_BIND": "true"}),
}


def measure(args: argparse.Namespace) -> None:
    """Adds the processes that the file lacks."""
    (vocab,) = (t.shape[0] for t in read_gguf(args.file).tensors if t.name == "token_embd.weight")
    done = {(line["round"], line["setting"]) for line in read_lines(args.lines)}
    for number in range(args.rounds):
        order = random.Random(f"{args.seed} {number}").sample(list(SETTINGS), len(SETTINGS))
        for setting in order:
            if (number, setting) in done:
                continue
            threads, variables = SETTINGS[setting]
            workload = Workload(args.prompt, args.generate)
            job = Job("llama.cpp", str(args.file), workload, vocab, 0, args.trials, 1, 1)
            fields = {"threads": threads or usable_cores(), "min_window_s": args.min_window}
            job = Job(**{**vars(job), **fields, "as_is": True})
            with args.lines.open("a") as lines, changed(variables):
                line = {"round": number, "setting": setting, "clock": loops_per_s(), **one(job)}
                lines.write(json.dumps(line) + "\n")
            print(f"round {number + 1} of {args.rounds}: {setting}", flush=True)


def one(job: Job) -> dict[str, Any]:
    """One process: rates, median time per token and share of time in stalls of every trial."""
    before = processor_ticks()
    outcome = run_job(job, 600.0)
    if outcome.failure:
        sys.exit(outcome.failure)
    trials = [trial for trial in outcome.trials if not trial.warmup]
    times_us = [[us for one_pass in t.token_us for us in one_pass] for t in trials]
    medians_us = [statistics.median(times) for times in times_us]
    pairs = zip(times_us, medians_us, strict=True)
    return {
        "decode_tok_s": [trial.decode_tok_s for trial in trials],
        "prefill_tok_s": [trial.prefill_tok_s for trial in trials],
        "token_us": medians_us,
        "stalls": [sum(us for us in times if us > STALL * m) / sum(times) for times, m in pairs],
        "ticks": [end - start for end, start in zip(processor_ticks(), before, strict=True)],
    }


@contextmanager
def changed(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes that are started."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def loops_per_s() -> float:
    """The speed of one core now, in millions of additions."""
    begin_s, total = time.perf_counter(), 0
    for number in range(2_000_000):
        total += number
    return 2 / (time.perf_counter() - begin_s)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def show(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Prints the table, and returns its figures."""
    results = []
    print("| setting | processes | tok/s | between | within | typical | stalls | clock |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for setting in SETTINGS:
        own = [line for line in lines if line["setting"] == setting]
        if len(own) < 2:
            continue
        logs = [[math.log(rate) for rate in line["decode_tok_s"]] for line in own]
        means = [statistics.fmean(each) for each in logs]
        within = statistics.fmean(statistics.variance(each) for each in logs)
        between = max(statistics.variance(means) - within / len(logs[0]), 0.0)
        typical = [math.log(statistics.median(line["token_us"])) for line in own]
        stalls = statistics.fmean(share for line in own for share in line["stalls"])
        clock = statistics.correlation(means, [math.log(line["clock"]) for line in own])
        found = {
            "setting": setting,
            "processes": len(own),
            "decode_tok_s": math.exp(statistics.median(means)),
            "between": math.sqrt(between),
            "within": math.sqrt(within),
            "typical": statistics.stdev(typical),
            "stalls": stalls,
            "clock": clock,
        }
        results.append(found)
        print(
            "| {setting} | {processes} | {decode_tok_s:.0f} | {between:.1%} | {within:.1%} | "
            "{typical:.1%} | {stalls:.1%} | {clock:.2f} |".format(**found)
        )
    return results


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a GGUF file")
    parser.add_argument("lines", type=Path, help="file of the measured processes")
    parser.add_argument("--rounds", type=int, default=30, help="0: only print")
    parser.add_argument("--trials", type=int, default=3, help="of each process, 2 or more")
    parser.add_argument("-p", "--prompt", type=int, default=128)
    parser.add_argument("-n", "--generate", type=int, default=128)
    parser.add_argument("--min-window", type=float, default=1.0, metavar="S")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parsed()
    measure(arguments)
    settings = {name: getattr(arguments, name) for name in ("prompt", "generate", "trials")}
    write_json(arguments.out, settings, show(read_lines(arguments.lines)))

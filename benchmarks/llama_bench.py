"""Times our llama.cpp engine against the `llama-bench` on the PATH, on the same GGUF file.

    python benchmarks/llama_bench.py models/demo/gguf-q4_k_m.gguf -p 512 -n 128 --rounds 5

Both run the same workload in a fresh process per round, with a warm-up. The order alternates.
Prints the medians over the rounds, and the ratio of ours to llama-bench's: above 1 ours is faster.
llama-bench times all N tokens of a pass, our engine the N - 1 after the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path

from edge.bench.runner import run_job
from edge.bench.worker import Job
from edge.device.describe import usable_cores
from edge.formats.gguf import read_gguf
from edge.llama_cpp.session import has_amx, library
from edge.profile.profile import Workload


def ours(job: Job) -> dict[str, float]:
    """Tokens per second of one process of our engine."""
    outcome = run_job(job, timeout_s=3600)
    if outcome.failure is not None:
        raise SystemExit(outcome.failure)
    trials = [trial for trial in outcome.trials if not trial.warmup]
    prefill = [trial.prefill_tok_s for trial in trials if trial.prefill_tok_s]
    decode = [trial.decode_tok_s for trial in trials if trial.decode_tok_s]
    found = {"prefill": prefill, "decode": decode}
    return {name: statistics.median(rates) for name, rates in found.items() if rates}


def theirs(job: Job) -> dict[str, float]:
    """Tokens per second of llama-bench."""
    numbers = {"-p": job.workload.prompt, "-n": job.workload.generate, "-d": job.workload.depth}
    numbers |= {"-r": job.repetitions, "-t": job.threads}
    command = ["llama-bench", "-m", job.path, "-o", "json"]
    command += [word for flag, number in numbers.items() for word in (flag, str(number))]
    if has_amx(library()):
        command += ["--repack", "0"]  # as our engine runs then
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return {
        "prefill" if test["n_prompt"] else "decode": statistics.median(test["samples_ts"])
        for test in json.loads(said)
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a GGUF file")
    parser.add_argument("-p", "--prompt", type=int, default=512, help="prompt tokens")
    parser.add_argument("-n", "--generate", type=int, default=128, help="generated tokens")
    parser.add_argument("-d", "--depth", type=int, default=0, help="tokens of context before")
    parser.add_argument("-r", "--repetitions", type=int, default=5, help="in each process")
    parser.add_argument("-t", "--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    """Measures and prints."""
    args = parsed()
    (vocab,) = (t.shape[0] for t in read_gguf(args.file).tensors if t.name == "token_embd.weight")
    workload = Workload(args.prompt, args.generate, args.depth)
    job = Job("llama.cpp", str(args.file), workload, vocab, 0, args.repetitions, 1, args.threads)
    rounds: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for number in range(args.rounds):
        for measure in (ours, theirs) if number % 2 == 0 else (theirs, ours):
            rounds[measure.__name__].append(measure(job))
    for name in rounds["ours"][0]:
        mine, other = (statistics.median(found[name] for found in rounds[who]) for who in rounds)
        print(f"{name:<8} {mine:10.2f} tok/s, llama-bench {other:10.2f}: {mine / other:.3f} x")


if __name__ == "__main__":
    main()

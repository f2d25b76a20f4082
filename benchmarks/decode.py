"""Time our decode loop against mlx-lm's on the same artefact, in turn, in one process.

    python benchmarks/decode.py                              # the demo, in MLX's float16 files
    python benchmarks/decode.py models/demo/mlx-int4 --prompt 512 --tokens 128

Both have the dtype that suits this device and the same prompt; the order turns from round to
round, and a first round is not counted. Decode is (N - 1) / (t_N - t_1), first is the time from
the call to the first token. Prints medians and bests of the rounds
with ratios to mlx-lm; on a machine that others use too the bests are the steadier ones.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler
from mlx_lm.utils import load_model as load_peer

from edge.checkpoints.artefacts.recipes import RECIPES
from edge.checkpoints.checkpoint import open_checkpoint
from edge.checkpoints.convert import convert
from edge.generate.decode import generate_tokens
from edge.generate.sampling import Sampling
from edge.model.load import compute_dtype, load_model

# What is timed, by name: a call that gives the tokens.
Loops = dict[str, Callable[[], Iterator[Any]]]


def loops(artefact: Path, prompt: Sequence[int], count: int, as_loaded: bool) -> Loops:
    """Greedy and sampled, ours and mlx-lm's; sampled with the filters people use."""
    ours = load_model(artefact)
    peer, _ = load_peer(artefact)
    if not as_loaded:
        peer.set_dtype(compute_dtype())
    mx.eval(peer.parameters())
    ids = mx.array(list(prompt))
    drawn = Sampling(temperature=0.8, top_p=0.95, seed=1)
    sampler = make_sampler(temp=0.8, top_p=0.95)
    return {
        "edge greedy": lambda: generate_tokens(ours, prompt, max_tokens=count),
        "mlx-lm greedy": lambda: generate_step(ids, peer, max_tokens=count),
        "edge sampled": lambda: generate_tokens(ours, prompt, max_tokens=count, sampling=drawn),
        "mlx-lm sampled": lambda: generate_step(ids, peer, max_tokens=count, sampler=sampler),
    }


def run(loop: Callable[[], Iterator[Any]]) -> tuple[float, float]:
    """Decoded tokens per second, and seconds to the first token."""
    mx.synchronize()
    begin = time.monotonic()
    stamps = [time.monotonic() for _ in loop()]
    return (len(stamps) - 1) / (stamps[-1] - stamps[0]), stamps[0] - begin


def measure(timed: Loops, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Every loop once per round, in an order that turns; one round before does not count."""
    names = list(timed)
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            result = run(timed[name])
            if turn >= 0:
                results[name].append(result)
    return results


def show(results: dict[str, list[tuple[float, float]]]) -> None:
    """Medians and bests, each with its ratio to mlx-lm's of the same kind; above 1 is faster."""
    for title, choose in (("median", statistics.median), ("best", max)):
        print(f"{title:<16} {'decode':>14} {'ratio':>6} {'first token':>14} {'ratio':>6}")
        # Speeds, so that the best of either is the highest.
        speeds = {
            name: (choose(rate for rate, _ in rounds), choose(1 / first for _, first in rounds))
            for name, rounds in results.items()
        }
        for name, (rate, first) in speeds.items():
            peer_rate, peer_first = speeds[f"mlx-lm {name.split()[1]}"]
            print(
                f"{name:<16} {rate:8.1f} tok/s {rate / peer_rate:6.3f} {1e3 / first:11.1f} ms "
                f"{first / peer_first:6.3f}"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artefact", nargs="?", type=Path, help="an MLX artefact; the demo's fp16")
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--tokens", type=int, default=256, help="tokens generated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--as-loaded", action="store_true", help="mlx-lm in its files' dtype")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        artefact = args.artefact
        if artefact is None:
            recipe = RECIPES["mlx-fp16"]
            convert(open_checkpoint("demo"), [recipe], Path(folder), lambda *_: None)
            artefact = Path(folder) / "mlx-fp16"
        vocab = load_model(artefact).config.vocab_size
        prompt = [(7919 * i) % vocab for i in range(1, args.prompt + 1)]
        results = measure(loops(artefact, prompt, args.tokens, args.as_loaded), args.rounds)
    dtype = str(compute_dtype()).removeprefix("mlx.core.")
    peer = "as loaded" if args.as_loaded else dtype
    print(f"{artefact.name}, {dtype} (mlx-lm {peer}), {args.prompt} + {args.tokens} tokens")
    show(results)


if __name__ == "__main__":
    main()

"""Times our decode loop against mlx-lm's on the same artefact, each in its own process.

    python benchmarks/decode.py                              # the demo, in MLX's float16 files
    python benchmarks/decode.py models/demo/mlx-int4 --depths 0 512 --json decode.json
    python benchmarks/decode.py --attention 0 4096 8192      # the attention step too

Both have the dtype that suits this device and the same prompt; mlx-lm has the BLAS that MLX comes
with. `--our-blas` adds mlx-lm with our BLAS, which separates the BLAS's effect from the network's;
`--as-loaded` adds it in the dtype of its files, as in its own commands. The order rotates from
round to round, and the first round is a warm-up. Decode is (N - 1) / (t_N - t_1); first is the time
from the call to the first token; prefill is a prompt's tokens over that time. The cache holds
`depth` tokens before the clock starts, and is trimmed to them after each round.

Prints medians over the rounds, how many times as fast as mlx-lm, and the range of that ratio over
the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import edge  # noqa: F401  before MLX, which it prepares

# isort: split
import attention
import mlx.core as mx
from apart import Make, Speeds, apart, in_turn, write_json
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache
from mlx_lm.sample_utils import make_sampler
from mlx_lm.utils import load_model as load_peer

from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.generate.decode import generate_tokens
from edge.generate.sampling import GREEDY, Sampling
from edge.model.kv_cache import make_cache
from edge.model.load import compute_dtype, load_model

OURS, PEER, PEER_OUR_BLAS, PEER_AS_LOADED = "edge", "mlx-lm", "mlx-lm, our BLAS", "mlx-lm as loaded"
STEPS_PER_ROUND = 4
DRAWN = Sampling(temperature=0.8, top_p=0.95, seed=1)


@dataclass(frozen=True)
class Timed:
    """One call of a loop: tokens in the cache, tokens of the prompt, tokens to generate."""

    artefact: Path
    vocab: int
    depth: int
    prompt: int
    count: int
    drawn: bool = False

    def ids(self, factor: int, length: int) -> list[int]:
        """Token ids, the same for every loop."""
        return [(factor * i) % self.vocab for i in range(1, length + 1)]


def make(name: str, timed: Timed) -> Callable[[], Speeds]:
    """A function for one round of ours or of mlx-lm's loop, with a cache that holds the depth."""
    before, prompt = timed.ids(31, timed.depth), timed.ids(7919, timed.prompt)
    if name == OURS:
        loop = _ours(load_model(timed.artefact), before, prompt, timed.count, timed.drawn)
    else:
        peer, _ = load_peer(timed.artefact)
        if name != PEER_AS_LOADED:
            peer.set_dtype(compute_dtype())
        mx.eval(peer.parameters())
        loop = _theirs(peer, before, prompt, timed.count, timed.drawn)
    return partial(decode_round, loop) if timed.count > 1 else partial(prefill_round, prompt, loop)


def _ours(
    model: Any, before: Sequence[int], prompt: Sequence[int], count: int, drawn: bool
) -> Callable[[], Iterator[Any]]:
    cache, sampling = make_cache(model), DRAWN if drawn else GREEDY
    if before:
        list(generate_tokens(model, before, cache=cache, max_tokens=0))

    def run() -> Iterator[Any]:
        trim_prompt_cache(cache, cache[0].offset - len(before))
        return generate_tokens(model, prompt, cache=cache, max_tokens=count, sampling=sampling)

    return run


def _theirs(
    model: Any, before: Sequence[int], prompt: Sequence[int], count: int, drawn: bool
) -> Callable[[], Iterator[Any]]:
    cache, ids = make_prompt_cache(model), mx.array(list(prompt))
    sampler = make_sampler(temp=0.8, top_p=0.95) if drawn else None
    if before:
        list(generate_step(mx.array(list(before)), model, max_tokens=0, prompt_cache=cache))
        trim_prompt_cache(cache, cache[0].offset - len(before))

    def run() -> Iterator[Any]:
        trim_prompt_cache(cache, cache[0].offset - len(before))
        return generate_step(ids, model, max_tokens=count, prompt_cache=cache, sampler=sampler)

    return run


def decode_round(loop: Callable[[], Iterator[Any]]) -> Speeds:
    """Decoded tokens per second, and the reciprocal of the time to the first token."""
    tokens = loop()
    mx.synchronize()
    begin = time.monotonic()
    stamps = [time.monotonic() for _ in tokens]
    return {
        "decode_tok_s": (len(stamps) - 1) / (stamps[-1] - stamps[0]),
        "first_token_per_s": 1 / (stamps[0] - begin),
    }


def prefill_round(prompt: Sequence[int], loop: Callable[[], Iterator[Any]]) -> Speeds:
    """Prompt tokens per second up to the first token."""
    ids = loop()
    mx.synchronize()
    begin = time.monotonic()
    next(iter(ids))
    return {"prefill_tok_s": len(prompt) / (time.monotonic() - begin)}


def step_round(call: Callable[[], None]) -> Speeds:
    """Attention steps per second."""
    begin = time.monotonic()
    for _ in range(STEPS_PER_ROUND):
        call()
    return {"step_per_s": STEPS_PER_ROUND / (time.monotonic() - begin)}


def compared(title: str, results: Mapping[str, Sequence[Speeds]]) -> list[dict[str, Any]]:
    """One record per quantity and name; a ratio above 1 is faster than mlx-lm."""
    return [
        {
            "what": title,
            "quantity": quantity,
            "name": name,
            "median": statistics.median(r[quantity] for r in rounds),
            **_ratio([r[quantity] for r in rounds], [r[quantity] for r in results[PEER]]),
            "rounds": [r[quantity] for r in rounds],
        }
        for quantity in results[PEER][0]
        for name, rounds in results.items()
    ]


def _ratio(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
    }


def show(records: Sequence[Mapping[str, Any]]) -> None:
    """Prints a line per record, below a line per comparison."""
    title = ""
    for r in records:
        if r["what"] != title:
            title = r["what"]
            print(title)
        print(
            f"  {r['quantity']:<18} {r['name']:<20} {r['median']:10.2f}  {r['ratio']:6.3f} x "
            f"({r['ratio_lowest']:.3f} to {r['ratio_highest']:.3f})",
            flush=True,
        )


def measure(args: argparse.Namespace, artefact: Path) -> Iterator[list[dict[str, Any]]]:
    """The comparisons of the arguments, each when it is done."""
    config = json.loads((artefact / "config.json").read_text(encoding="utf-8"))
    vocab = config["vocab_size"]
    name = f"{artefact.parent.name}/{artefact.name}" if args.artefact else "demo/mlx-fp16"
    timed = {}
    for drawn in (False, True) if args.sampled else (False,):
        for depth in args.depths:
            kind = "sampled" if drawn else "greedy"
            title = f"{name}, {kind}, {args.prompt} + {args.tokens} tokens at depth {depth}"
            timed[title] = Timed(artefact, vocab, depth, args.prompt, args.tokens, drawn)
    for length in args.prefill:
        timed[f"{name}, prefill of {length} tokens"] = Timed(artefact, vocab, 0, length, 1)
    names = [OURS, PEER]
    names += [PEER_OUR_BLAS] if args.our_blas else []
    names += [PEER_AS_LOADED] if args.as_loaded else []
    for title, what in timed.items():
        makes: dict[str, Make] = {n: partial(make, n, what) for n in names}
        with apart(makes, {PEER, PEER_AS_LOADED}) as calls:
            yield compared(title, in_turn(calls, args.rounds))
    for depth in args.attention:
        shape = argparse.Namespace(depth=depth, heads=32, head_dim=80, dtype=args.attention_dtype)
        steps = {n: partial(step_round, c) for n, c in attention.attention_steps(shape).items()}
        title = f"attention step, 32 heads of 80, {args.attention_dtype}, depth {depth}"
        yield compared(title, in_turn(steps, args.rounds))


def method(rounds: int) -> dict[str, Any]:
    """How both are measured, for the file."""
    return {
        "mlx_device": str(mx.device_info().get("device_name", mx.default_device())),
        "compute_dtype": str(compute_dtype()).removeprefix("mlx.core."),
        "peer": "mlx-lm's network and loop on the same files, in a process of its own, with the "
        "BLAS that MLX comes with",
        "rounds": rounds,
        "warmups": 1,
        "ratio": "median, lowest and highest over rounds of ours / mlx-lm's; above 1: faster",
    }


@contextmanager
def artefact_of(path: Path | None) -> Iterator[Path]:
    """The given artefact, or the demo's, converted for this run."""
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        convert(open_checkpoint("demo"), [RECIPES["mlx-fp16"]], Path(folder), lambda *_: None)
        yield Path(folder) / "mlx-fp16"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artefact", nargs="?", type=Path, help="an MLX artefact; the demo's fp16")
    parser.add_argument("--prompt", type=int, default=32, help="tokens before the decoded ones")
    parser.add_argument("--tokens", type=int, default=256, help="tokens generated")
    parser.add_argument("--depths", type=int, nargs="*", default=[0], help="in the cache before")
    parser.add_argument("--prefill", type=int, nargs="*", default=[256], help="prompts to time")
    parser.add_argument("--attention", type=int, nargs="*", default=[], help="depths of the step")
    parser.add_argument("--attention-dtype", default="float16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sampled", action="store_true", help="with temperature and top-p too")
    parser.add_argument("--our-blas", action="store_true", help="mlx-lm with our BLAS too")
    parser.add_argument("--as-loaded", action="store_true", help="mlx-lm in its files' dtype too")
    parser.add_argument("--json", type=Path, help="file to write all rounds to")
    return parser.parse_args()


def main() -> None:
    """Measures, prints each comparison, writes the file."""
    args, records = parsed(), []
    with artefact_of(args.artefact) as artefact:
        for found in measure(args, artefact):
            show(found)
            records += found
    write_json(args.json, method(args.rounds), records)


if __name__ == "__main__":
    main()

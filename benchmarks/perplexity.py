"""Times our scoring loop against mlx_lm.perplexity's on the same windows.

    python benchmarks/perplexity.py                            # the demo, in MLX's float16 files
    python benchmarks/perplexity.py models/demo/mlx-int4 --tokens 8192 --json perplexity.json

Both score the same ids with the same files in the dtype that suits this device, each in its own
process; mlx-lm in batches of eight, as in its command, with the BLAS that MLX comes with. "edge" is
the loop of `edge eval` on one artefact without a reference, as in mlx-lm; "edge, with KL" runs a
second network as the reference. The order rotates from round to round, and the first round is a
warm-up.

Prints medians over the rounds in scored tokens per second, how many times as fast as mlx-lm, and
the range of that ratio over the rounds. Stops if the perplexities differ.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import edge  # noqa: F401  before MLX, which it prepares

# isort: split
import decode
import mlx.core as mx
import numpy as np
from apart import Make, Speeds, apart, in_turn, write_json
from mlx_lm.perplexity import eval_ppl
from mlx_lm.utils import load_model as load_peer

from edge.model.load import compute_dtype
from edge.quality.corpus import Ids, iter_texts, make_windows
from edge.quality.score import MlxScorer, pieces_of, score
from edge.tokenizer.tokenizer import Tokenizer

OURS, WITH_KL, PEER = "edge", "edge, with KL", decode.PEER
AGREEMENT = 1e-3  # relative, of the perplexity


def ids_of(artefact: Path, window: int, tokens: int) -> Ids:
    """Windows (n, window) of the bundled sample."""
    tokenizer = Tokenizer.load(artefact)
    return make_windows(iter_texts(None), tokenizer, "sample", window, tokens).ids


def ours(scorers: dict[str, MlxScorer], ids: Ids, reference: str | None) -> float:
    """Perplexity of all tokens but the first of a window, as in `edge eval`."""
    vocab = next(iter(scorers.values())).vocab_size
    pieces = pieces_of(ids.shape[1], vocab)
    batches = range(0, len(ids), pieces.windows)
    found = [score(scorers, reference, ids[i : i + pieces.windows], pieces) for i in batches]
    nll = np.concatenate([scores["own"]["nll"].reshape(-1) for scores in found]).astype(np.float64)
    return math.exp(nll.mean())


def theirs(model: Any, ids: Ids, batch: int) -> float:
    """The same perplexity by mlx_lm.perplexity, without its progress output."""
    with contextlib.redirect_stdout(io.StringIO()):
        perplexity, _ = eval_ppl(model, mx.array(ids), batch_size=batch)
    return float(perplexity)


def timed(loop: Callable[[], float], tokens: int) -> Speeds:
    """Scored tokens per second, and the perplexity."""
    mx.synchronize()
    begin = time.monotonic()
    perplexity = loop()
    return {"scored_tok_s": tokens / (time.monotonic() - begin), "perplexity": perplexity}


def make(name: str, artefact: Path, ids: Ids, batch: int) -> Callable[[], Speeds]:
    """A function for one round of a loop; loads its networks."""
    if name == PEER:
        peer, _ = load_peer(artefact)
        peer.set_dtype(compute_dtype())
        mx.eval(peer.parameters())
        loop = partial(theirs, peer, ids, batch)
    elif name == WITH_KL:
        scorers = {"reference": MlxScorer(artefact), "own": MlxScorer(artefact)}
        loop = partial(ours, scorers, ids, "reference")
    else:
        loop = partial(ours, {"own": MlxScorer(artefact)}, ids, None)
    return partial(timed, loop, ids[:, 1:].size)


def measure(args: argparse.Namespace, artefact: Path) -> list[dict[str, Any]]:
    """One record per loop."""
    ids = ids_of(artefact, args.window, args.tokens)
    makes: dict[str, Make] = {
        name: partial(make, name, artefact, ids, args.batch) for name in (OURS, WITH_KL, PEER)
    }
    with apart(makes, {PEER}) as calls:
        results = in_turn(calls, args.rounds)
    found = {name: [r.pop("perplexity") for r in rounds][-1] for name, rounds in results.items()}
    for name, perplexity in found.items():
        if abs(perplexity / found[PEER] - 1) > AGREEMENT:
            sys.exit(f"{name} finds a perplexity of {perplexity}, mlx-lm {found[PEER]}")
    name = f"{artefact.parent.name}/{artefact.name}" if args.artefact else "demo/mlx-fp16"
    return decode.compared(f"{name}, {len(ids)} windows of {args.window}", results)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artefact", nargs="?", type=Path, help="an MLX artefact; the demo's fp16")
    parser.add_argument("--window", type=int, default=512, help="tokens in a window")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens at most")
    parser.add_argument("--batch", type=int, default=8, help="windows at once in mlx-lm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write all rounds to")
    return parser.parse_args()


def main() -> None:
    """Measures, prints, writes the file."""
    args = parsed()
    with decode.artefact_of(args.artefact) as artefact:
        records = measure(args, artefact)
    decode.show(records)
    write_json(args.json, decode.method(args.rounds), records)


if __name__ == "__main__":
    main()

"""Times decoding with prompt lookup against plain decoding, in one process.

    python benchmarks/speculation.py                                # the demo, fp16 and int4
    python benchmarks/speculation.py models/stable-code-3b/mlx-int4

Prints the time of a pass over L tokens, in units of a pass over one. Then, per kind of text, the
decode rate without lookup, the ratio with lookup (above 1 is faster), tokens drafted, and the share
accepted. The kinds, all greedy but the last:

    copy     the model continues a prompt that begins to repeat a file
    edit     a perfect editor: the logits are computed, then replaced by those of the same file
             with a name changed. An upper bound
    free     beginnings of functions, where little repeats
    draws    as free, at temperature 0.8

`always 4` drafts four tokens at every match. The tokens of all loops must be equal. Rounds are
interleaved, and medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import edge  # noqa: F401  before MLX, which it prepares

# isort: split
import mlx.core as mx
from apart import in_turn

from edge.convert.artefacts.manifest import Corrections
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.errors import EdgeError
from edge.generate.decode import generate_tokens
from edge.generate.sampling import GREEDY, Sampling
from edge.generate.speculate import DraftLength, PromptLookup
from edge.model.kv_cache import make_cache
from edge.model.load import load, load_model
from edge.model.stablelm import Model

WIDTHS = (1, 2, 4, 8)
BEGINNINGS = (
    "def read_config(path):\n",
    "class Server:\n    def __init__(self, host, port):\n",
    "import argparse\n\n\ndef main():\n",
)


class Always4(DraftLength):
    """Four proposals at every match."""

    def best(self, kind: int, most: int) -> int:
        """4 or `most`, where there is a match."""
        return min(4, most) if kind else 0


class Editor:
    """A network that computes its logits, then replaces them to generate a given text."""

    def __init__(self, model: Model, begin: int, text: Sequence[int]):
        self._model, self._begin, self._text = model, begin, list(text)
        self.config, self.layers = model.config, model.layers
        self._fed = 0

    def model(self, ids: mx.array, cache: Sequence[Any]) -> mx.array:
        """Hidden states (1, L, hidden)."""
        self._fed = cache[0].offset
        return self._model.model(ids, cache)

    def head(self, h: mx.array) -> mx.array:
        """Logits (1, L, vocab) whose largest are those of the given text."""
        logits = self._model.head(h)
        # A prefill passes on its last position only; decoding begins there.
        first = max(self._fed - self._begin + 1, 0)
        wanted = mx.array(self._text[first : first + h.shape[1]])
        chosen = mx.arange(logits.shape[-1]) == wanted[:, None]
        return logits + 1e3 * chosen[None].astype(logits.dtype)


def pass_costs(model: Model, ids: Sequence[int], rounds: int) -> dict[int, float]:
    """Seconds of one pass by number of tokens, with head and argmax; the cache holds `ids`."""
    cache = make_cache(model)
    list(generate_tokens(model, ids, cache=cache, max_tokens=0))
    laps: dict[int, list[float]] = {width: [] for width in WIDTHS}
    for _ in range(rounds + 1):
        for width, found in laps.items():
            begin = time.monotonic()
            mx.eval(mx.argmax(model(mx.array([ids[:width]]), cache), axis=-1))
            found.append(time.monotonic() - begin)
            for layer in cache:
                layer.trim(width)
    return {width: statistics.median(found[1:]) for width, found in laps.items()}


def texts(model: Model, tokenizer: Any, count: int) -> Iterator[tuple[str, Any, list[int]]]:
    """Kind, network and prompt; without a tokenizer ids with period 97."""
    if tokenizer is None:
        file = [(7919 * i) % model.config.vocab_size for i in range(1, 98)]
        edited = [token if i % 25 else 5 for i, token in enumerate(file)]
    else:
        source = textwrap.dedent(Path(__file__).read_text(encoding="utf-8"))
        source = source[source.index("def pass_costs") : source.index("def texts")]
        file = list(tokenizer.encode(source))[:400]
        edited = list(tokenizer.encode(source.replace("laps", "times_s").replace("found", "seen")))
    yield "copy", model, [*file, *file[: len(file) // 4]]
    text = (edited * (count // len(edited) + 2))[: count + 16]
    yield "edit", Editor(model, len(file), text), file
    for beginning in BEGINNINGS if tokenizer is not None else ():
        yield "free", model, list(tokenizer.encode(beginning))
    if tokenizer is None:
        yield "free", model, file[:16]


def run(
    model: Any, prompt: Sequence[int], count: int, sampling: Sampling, draft: PromptLookup | None
) -> tuple[float, list[int]]:
    """Decoded tokens per second, and the tokens."""
    mx.synchronize()
    stamps, tokens = [], []
    for token in generate_tokens(model, prompt, max_tokens=count, sampling=sampling, draft=draft):
        tokens.append(token)
        stamps.append(time.monotonic())
    return (len(tokens) - 1) / (stamps[-1] - stamps[0]), tokens


def measure(model: Any, prompt: Sequence[int], args: argparse.Namespace, sampling: Sampling) -> str:
    """The line of one prompt; every loop runs once per round, in rotating order."""
    # The same drafters in all rounds: they adapt, as in a conversation.
    lookup, always = PromptLookup(), PromptLookup()
    always.length = Always4()
    drafters = {"plain": None, "lookup": lookup, "always 4": always}
    calls = {
        name: partial(run, model, prompt, args.tokens, sampling, draft)
        for name, draft in drafters.items()
    }
    found = in_turn(calls, args.rounds)
    expected = found["plain"][0][1]
    for name, runs in found.items():
        if any(tokens != expected for _, tokens in runs):
            raise EdgeError(f"{name} generated other tokens; report it with the artefact.")
    rates = {name: [rate for rate, _ in runs] for name, runs in found.items()}
    plain = statistics.median(rates["plain"])
    share = f"{lookup.accepted / lookup.drafted:4.0%}" if lookup.drafted else "  - "
    ratios = [statistics.median(rates[name]) / plain for name in ("lookup", "always 4")]
    return f"{plain:8.1f} tok/s {ratios[0]:7.2f} {lookup.drafted:6d} {share} {ratios[1]:10.2f}"


def report(path: Path, args: argparse.Namespace) -> None:
    """Prints all results of one artefact."""
    try:
        model, tokenizer = load(path)
    except EdgeError:
        model, tokenizer = load_model(path), None
    ids = [(7919 * i) % model.config.vocab_size for i in range(1, 129)]
    costs = pass_costs(model, ids, args.rounds * 2)
    print(f"{path.name}: a step {1e3 * costs[1]:.1f} ms; a pass of L tokens, in steps:", end="")
    print(*(f" {width}: {costs[width] / costs[1]:.2f}" for width in WIDTHS[1:]), sep=",")
    print(f"{'':6} {'plain':>14} {'lookup':>7} {'drafted':>6} {'acc.'} {'always 4':>10}")
    for kind, network, prompt in texts(model, tokenizer, args.tokens):
        print(f"{kind:6} {measure(network, prompt, args, GREEDY)}", flush=True)
        if kind == "free":
            drawn = Sampling(temperature=0.8, seed=1)
            print(f"{'draws':6} {measure(network, prompt, args, drawn)}", flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artefacts", nargs="*", type=Path, help="MLX artefacts; the demo's two")
    parser.add_argument("--checkpoint", default="demo", help="converted where no artefact is given")
    parser.add_argument("--layers", type=int, help="of a synthetic checkpoint")
    parser.add_argument("--tokens", type=int, default=192, help="tokens generated")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = args.artefacts or [Path(folder) / name for name in ("mlx-fp16", "mlx-int4")]
        if not args.artefacts:
            recipes = [RECIPES[path.name] for path in paths]
            opened = open_checkpoint(args.checkpoint, corrections=Corrections(layers=args.layers))
            convert(opened, recipes, Path(folder), lambda *_: None)
        for path in paths:
            report(path, args)


if __name__ == "__main__":
    main()

"""Run under mlx.launch: artefacts over all ranks, compared with one process on rank 0.

    mlx.launch -n 2 -- python -m tests.support.sharded FOLDER NAME ...

Every rank prints a JSON line.
"""

import json
import sys
from pathlib import Path

import edge  # noqa: F401  must be imported before MLX

# isort: split
import mlx.core as mx

from edge.generate.decode import MlxSource
from edge.generate.sampling import Sampling
from edge.generate.speculate import PromptLookup
from edge.model import stablelm
from edge.model.follow import end, follow, open_together, part_here
from edge.model.kv_cache import make_cache
from edge.model.load import load_model
from tests.support.tiny import token_ids

# Heads of 32 are padded, as on a GPU.
stablelm.FUSED_DECODE_WIDTHS["cpu"] = (64,)
DRAWN = Sampling(temperature=1.0, top_k=20, seed=7)


def logits(model):
    """Of a whole prompt, of pieces of it, and of pieces with an 8-bit cache: 40 positions each."""
    ids = mx.array(token_ids(model.config))
    found = [model(ids)]
    for kv_bits in (None, 8):
        cache = make_cache(model, kv_bits)
        for part in mx.split(ids, [30, 31, 37], axis=1):
            found.append(model(part, cache))
    return mx.concatenate(found, axis=1)[0]


def texts(model):
    """Ids of answers: greedy, drawn, with prompt lookup, with a part of the cache reused."""
    prompt = token_ids(model.config, 12).tolist()[0] * 4
    found = []
    for kv_bits, draft in ((None, None), (8, PromptLookup())):
        source = MlxSource(model, kv_bits, draft=draft)
        for ids, sampling in ((prompt, Sampling()), (prompt[:20], DRAWN)):
            _, tokens = source.generate(ids, 9, sampling, prefill_tokens=30)
            found.append(list(tokens))
        _, tokens = source.generate(prompt, 9, Sampling())
        next(tokens)
        tokens.close()  # as when a reader leaves
    return found


def compared(path):
    model = open_together(path).model
    whole = load_model(path)
    differences = mx.abs(logits(model) - logits(whole)).max(axis=-1).tolist()
    return {"differences": differences, "texts": texts(model), "expected": texts(whole)}


def main():
    folder, *names = sys.argv[1:]
    part = part_here()
    answer = {"rank": part.rank}
    if part.rank == 0:
        answer["artefacts"] = {name: compared(Path(folder, name)) for name in names}
        end()
    else:
        follow()
    print(json.dumps(answer), flush=True)


main()

"""An evaluation on each process for tests/quality: SOURCE OUT STORE NAME...; prints JSON."""

import json
import sys
from pathlib import Path

import edge  # noqa: F401  must be imported before MLX

# isort: split
import mlx.core as mx
from msgspec import structs

from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.distributed import rank
from edge.quality import score
from edge.quality.evaluate import evaluate
from edge.quality.records import Subject
from edge.tokenizer.tokenizer import Tokenizer
from tests.quality.test_evaluate import letters


def main(source, out, store, *names):
    mx.set_default_device(mx.cpu)
    scored, plain = [], score.score
    score.score = lambda s, r, ids, p: scored.append(len(ids)) or plain(s, r, ids, p)
    subjects = [Subject(name, RECIPES[name].path_in(Path(out))) for name in names]
    windows = letters(Tokenizer.load(Path(source)))
    config, folder = open_checkpoint(source).config, Path(store, str(rank()))
    for again in (True, False):
        found = evaluate(subjects, names[0], windows, config, folder, 1, again)
    quality = {name: structs.asdict(one) for name, one in found.quality.items()}
    print(json.dumps({"rank": rank(), "quality": quality, "scored": scored}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

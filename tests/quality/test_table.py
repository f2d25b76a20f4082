"""Positions with the largest KL divergence, in context."""

import numpy as np
import pytest

from edge.cli.model_path import DEMO
from edge.quality.corpus import SourceText, make_windows
from edge.quality.score import SCORE
from edge.quality.table import _worst_text, worst
from edge.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(DEMO)
TEXT = "import os\n\n\ndef f(x):\n\treturn os.path.join(x, '\x1b[31m')\n" * 6


def random_scores(shape, seed):
    rng = np.random.RandomState(seed)
    found = np.empty(shape, SCORE)
    for name, most in (("nll", 9), ("kl", 9), ("top", 4096), ("top_log_q", -9)):
        found[name] = most * rng.rand(*shape)
    return found


def shown(token):
    text = TOKENIZER.decode([int(token)])
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def test_worst_positions_in_their_context():
    windows = make_windows([SourceText("x", TEXT)], TOKENIZER, "x", 16, None)
    windows.scored[:, 3:] = False
    own, other = (random_scores(windows.scored.shape, seed) for seed in (1, 2))
    found = worst(windows, own, other, TOKENIZER, 1000)
    assert len(found) == windows.scored.sum()
    kl = np.where(windows.scored, own["kl"], -1)
    assert [f["kl"] for f in found] == pytest.approx(sorted(kl[windows.scored], reverse=True))
    for place in found:
        w, i = place["window"], place["position"]
        assert place["next"] == shown(windows.ids[w, i])
        assert place["before"].endswith(shown(windows.ids[w, i - 1]))
        assert place["artefact"]["token"] == shown(own["top"][w, i - 1])
        chance = np.exp(-float(other["nll"][w, i - 1]))
        assert place["reference"]["probability_of_next"] == pytest.approx(chance)
    text = _worst_text({"artefact": "mlx-int4", "worst": found})
    assert text.replace("\n", "").isprintable() and "x1b" in text

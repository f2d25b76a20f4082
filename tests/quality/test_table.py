"""The worst positions in context."""

import numpy as np
import pytest

from edge.cli.model_path import DEMO
from edge.quality.corpus import SourceText, make_windows
from edge.quality.score import SCORE
from edge.quality.table import _worst_text, worst
from edge.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(DEMO)
TEXT = "import os\n\n\ndef f(x):\n\treturn os.path.join(x, '\x1b[31m')\n" * 6


@pytest.fixture
def windows():
    return make_windows([SourceText("x", TEXT)], TOKENIZER, "x", 16, None)


def scores(windows, seed):
    rng = np.random.RandomState(seed)
    found = np.empty(windows.scored.shape, SCORE)
    for name, column in zip(SCORE.names, rng.rand(4, *found.shape), strict=True):
        found[name] = column
    found["top"] = rng.randint(0, 4096, found.shape)
    found["top_log_q"] *= -1
    return found


def shown(token):
    text = TOKENIZER.decode([int(token)])
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def test_worst_positions_in_their_context(windows):
    own, other = scores(windows, 1), scores(windows, 2)
    found = worst(windows, own, other, TOKENIZER, 5)
    kl = np.where(windows.scored, own["kl"], -1)
    assert [f["kl"] for f in found] == pytest.approx(sorted(kl.ravel(), reverse=True)[:5])
    for place in found:
        w, i = place["window"], place["position"]
        assert own["kl"][w, i - 1] == pytest.approx(place["kl"])
        assert place["next"] == shown(windows.ids[w, i])
        assert place["before"].endswith(shown(windows.ids[w, i - 1]))
        assert place["artefact"]["token"] == shown(own["top"][w, i - 1])
        assert place["reference"]["token"] == shown(other["top"][w, i - 1])
        chance = np.exp(-float(other["nll"][w, i - 1]))
        assert place["reference"]["probability_of_next"] == pytest.approx(chance)


def test_control_characters_are_shown_as_escapes(windows):
    found = worst(windows, scores(windows, 1), scores(windows, 2), TOKENIZER, windows.scored.size)
    text = _worst_text({"artefact": "mlx-int4", "worst": found})
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "x1b" in text


def test_separators_are_never_shown(windows):
    windows.scored[:, 3:] = False
    found = worst(windows, scores(windows, 1), scores(windows, 2), TOKENIZER, 1000)
    assert len(found) == windows.scored.sum()
    assert {place["position"] for place in found} <= {1, 2, 3}

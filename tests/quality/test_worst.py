"""The worst positions in context."""

import numpy as np
import pytest

from edge.cli.model_path import DEMO
from edge.quality.divergence import Scores
from edge.quality.texts import SourceText
from edge.quality.windows import make_windows
from edge.quality.worst import worst, worst_text
from edge.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(DEMO)
TEXT = "import os\n\n\ndef f(x):\n\treturn os.path.join(x, '\x1b[31m')\n" * 6


@pytest.fixture
def windows():
    return make_windows([SourceText("x", TEXT)], TOKENIZER, 4096, "x", 16, None)


def scores(windows, seed):
    rng = np.random.RandomState(seed)
    shape = windows.scored.shape
    return [
        Scores(*(rng.rand(shape[1]).astype(np.float32) for _ in range(2)), top, -rng.rand(shape[1]))
        for top in rng.randint(0, 4096, shape).astype(np.int32)
    ]


def test_the_largest_come_first_with_what_was_there(windows):
    own, other = scores(windows, 1), scores(windows, 2)
    found = worst(windows, own, other, TOKENIZER, 5)
    table = np.where(windows.scored, np.stack([s.kl for s in own]), -1)
    assert [f.kl for f in found] == pytest.approx(sorted(table.ravel(), reverse=True)[:5])
    for place in found:
        row, i = windows.ids[place.window], place.position
        assert own[place.window].kl[i - 1] == pytest.approx(place.kl)
        assert place.next == _shown(row[i])
        assert place.before.endswith(_shown(row[i - 1]))
        assert place.artefact.token == _shown(own[place.window].top[i - 1])
        assert place.reference.token == _shown(other[place.window].top[i - 1])
        nll = float(other[place.window].nll[i - 1])
        assert place.reference.probability_of_next == pytest.approx(np.exp(-nll))


def _shown(token):
    text = TOKENIZER.decode([int(token)])
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def test_no_terminal_acts_on_what_is_printed(windows):
    count = windows.scored.size
    text = worst_text(
        "mlx-int4", worst(windows, scores(windows, 1), scores(windows, 2), TOKENIZER, count)
    )
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "\\x1b" in text
    assert "\\t" in text


def test_separators_are_never_shown(windows):
    windows.scored[:, 3:] = False
    found = worst(windows, scores(windows, 1), scores(windows, 2), TOKENIZER, 1000)
    assert len(found) == windows.scored_tokens
    assert {place.position for place in found} <= {1, 2, 3}

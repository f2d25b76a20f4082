"""Evaluations of real artefacts: divergence, groups, interruption, memory."""

from itertools import count

import mlx.core as mx
import numpy as np
import pytest

from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.device.memory import MemoryRoom
from edge.errors import EdgeError
from edge.model.load import load_model
from edge.model.memory import FORCE
from edge.quality import evaluate as module
from edge.quality import score
from edge.quality.corpus import SourceText, Windows, make_windows
from edge.quality.evaluate import evaluate, make_groups
from edge.quality.records import Subject
from edge.tokenizer.tokenizer import Tokenizer
from tests.support.conversions import make
from tests.support.tiny import CONFIGS, write_checkpoint

NAMES = ("mlx-fp16", "mlx-int4", "gguf-f16")
WINDOW = 12
LETTERS = "".join(chr(33 + i * i % 90) for i in range(9 * WINDOW))


def subjects(out, names=NAMES):
    return [Subject(name, RECIPES[name].path_in(out)) for name in names]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint, its artefacts and its windows."""
    folder = tmp_path_factory.mktemp("tiny")
    source = write_checkpoint(folder / "source", CONFIGS["theta-1e6"])
    checkpoint = open_checkpoint(str(source))
    make(source, folder / "out", *NAMES)
    texts = [SourceText("a", LETTERS[:50]), SourceText("b", LETTERS[50:])]
    windows = make_windows(texts, Tokenizer.load(source), "letters", WINDOW, None)
    return checkpoint, folder / "out", windows


@pytest.fixture
def run(tiny, tmp_path):
    """run(names, options): an evaluation, by default without stored scores."""
    checkpoint, out, windows = tiny
    folders = (tmp_path / str(i) for i in count())

    def evaluated(names=NAMES, folder=None, windows=windows, **options):
        folder = folder or next(folders)
        return evaluate(
            subjects(out, names), NAMES[0], windows, checkpoint.config, folder, 1, **options
        )

    return evaluated


def test_divergence_is_that_of_an_independent_computation(run, tiny):
    _, out, windows = tiny
    found, log_p = run(NAMES[:2]), None
    for subject in subjects(out, NAMES[:2]):
        model = load_model(subject.path)
        logits = np.array(model(mx.array(windows.ids[:, :-1]))).astype(np.float64)
        log_q = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        log_p = log_q if log_p is None else log_p
        kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
        np.testing.assert_allclose(found.scores[subject.name]["kl"], kl, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("piece_bytes", [1, 4 * 160 * 3])
def test_size_of_pieces_does_not_change_scores(piece_bytes, run, monkeypatch):
    whole = run().scores
    monkeypatch.setattr(score, "PIECE_BYTES", piece_bytes)
    for name, scores in run().scores.items():
        np.testing.assert_allclose(scores["nll"], whole[name]["nll"], atol=5e-3)


def test_artefact_with_another_vocabulary_is_refused(tiny, demo_out, tmp_path):
    checkpoint, _, windows = tiny
    with pytest.raises(EdgeError, match="a vocabulary of 4096 and the checkpoint one of 160"):
        evaluate(
            subjects(demo_out, NAMES[2:]), None, windows, checkpoint.config, tmp_path, threads=1
        )


def test_stored_scores_are_not_computed_again(run, tmp_path, monkeypatch):
    opened, plain = [], score.open_scorer
    monkeypatch.setattr(score, "open_scorer", lambda s, *a: opened.append(s.name) or plain(s, *a))
    run(NAMES[:2], tmp_path)
    first = run(folder=tmp_path)
    assert opened == ["mlx-fp16", "mlx-int4", "mlx-fp16", "gguf-f16"]
    assert run(folder=tmp_path).quality == first.quality
    assert len(opened) == 4
    assert run(folder=tmp_path, again=True).quality == first.quality
    assert len(opened) == 7


def test_interrupted_run_continues(run, tiny, tmp_path, monkeypatch):
    scored, plain = [], score.score
    monkeypatch.setattr(score, "MOST_WINDOWS", 1)
    monkeypatch.setattr(
        score, "score", lambda s, r, ids, p: scored.extend(ids.tolist()) or plain(s, r, ids, p)
    )

    def stop(name, done):
        if done > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(NAMES[:2], tmp_path, progress=stop)
    first = len(scored)
    run(NAMES[:2], tmp_path)
    assert 0.6 * len(tiny[2]) < first < len(scored) == len(tiny[2])


def test_artefacts_that_fit_together_are_one_group():
    found = [make_groups({"a": 2, "b": 3, "c": 4}, free_bytes) for free_bytes in (9, 8, 0)]
    assert found == [[["a", "b", "c"]], [["a", "b"], ["c"]], [["a"], ["b"], ["c"]]]


def test_groups_do_not_change_figures(run, monkeypatch):
    together, seen = run(), {}
    monkeypatch.setattr(module, "available_bytes", lambda: MemoryRoom(1, 1, "memory"))
    monkeypatch.delenv(FORCE, raising=False)
    with pytest.raises(EdgeError, match=f"need 0.. GB together.* or set {FORCE}=1"):
        run()
    monkeypatch.setenv(FORCE, "1")
    apart = run(progress=lambda name, done: seen.setdefault(name, []).append(done))
    assert apart.quality == together.quality
    shortage, repeats = apart.notes
    assert "GB together, and 0 MB of memory are available" in shortage
    assert "mlx-fp16 was computed 2 times" in repeats
    assert set(seen) == set(NAMES)
    assert all(shares == sorted(shares) and shares[-1] == 1.0 for shares in seen.values())


def test_memory_does_not_grow_with_the_corpus(run, tiny, monkeypatch):
    windows = tiny[2]
    monkeypatch.setattr(score, "PIECE_BYTES", 4 * 160 * (WINDOW - 1))
    long = [np.concatenate([part] * 10) for part in (windows.ids, windows.scored, windows.bytes)]
    peaks = []
    for some in (windows, Windows(*long, windows.corpus, 0)):
        mx.clear_cache()
        mx.reset_peak_memory()
        run(NAMES[:2], windows=some)
        peaks.append(mx.get_peak_memory())
    assert peaks[1] < 1.1 * peaks[0]

"""Whole evaluations of real artefacts: exact, in groups, stopped and continued."""

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
    """A checkpoint, its artefacts and its windows, the last text ended by EOS."""
    folder = tmp_path_factory.mktemp("tiny")
    source = write_checkpoint(folder / "source", CONFIGS["theta-1e6"])
    checkpoint = open_checkpoint(str(source))
    make(source, folder / "out", *NAMES)
    texts = [SourceText("a", LETTERS[:50]), SourceText("b", LETTERS[50:])]
    windows = make_windows(texts, Tokenizer.load(source), "letters", WINDOW, None)
    return checkpoint, folder / "out", windows


def run(tiny, names=NAMES, reference=NAMES[0], **options):
    checkpoint, out, windows = tiny
    return evaluate(subjects(out, names), reference, windows, checkpoint.config, **options)


@pytest.fixture
def scored(monkeypatch):
    """Windows that are scored from now on, as lists of ids, one at a time."""
    found, plain = [], score.score
    monkeypatch.setattr(score, "MOST_WINDOWS", 1)
    monkeypatch.setattr(
        score, "score", lambda s, r, ids, p: found.extend(ids.tolist()) or plain(s, r, ids, p)
    )
    return found


def test_every_figure_against_an_independent_computation(tiny):
    _, out, windows = tiny
    found, log_p = run(tiny, NAMES[:2]), None
    for subject in subjects(out, NAMES[:2]):
        model = load_model(subject.path)
        rows = [np.array(model(mx.array(ids[None, :-1])))[0] for ids in windows.ids]
        logits = np.stack(rows).astype(np.float64)
        log_q = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        log_p = log_q if log_p is None else log_p
        nll = -np.take_along_axis(log_q, windows.ids[:, 1:, None], axis=-1)[..., 0]
        kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
        same = (log_q.argmax(-1) == log_p.argmax(-1))[windows.scored].mean()
        scores, quality = found.scores[subject.name], found.quality[subject.name]
        np.testing.assert_allclose(scores["nll"], nll, rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(scores["kl"], kl, rtol=1e-3, atol=2e-5)
        assert quality.perplexity == pytest.approx(np.exp(nll[windows.scored].mean()), rel=1e-3)
        assert quality.kl_mean == pytest.approx(kl[windows.scored].mean(), rel=2e-2, abs=1e-5)
        assert quality.top1_agreement == pytest.approx(same, abs=0.02)


@pytest.mark.parametrize("piece_bytes", [1, 4 * 160 * 3])
def test_pieces_of_any_size_give_the_same(piece_bytes, tiny, monkeypatch):
    whole = run(tiny)
    monkeypatch.setattr(score, "PIECE_BYTES", piece_bytes)
    found = run(tiny)
    for name in NAMES:
        np.testing.assert_allclose(found.scores[name]["nll"], whole.scores[name]["nll"], atol=5e-3)


def test_another_vocabulary_is_refused(tiny, demo_out):
    checkpoint, _, windows = tiny
    with pytest.raises(EdgeError, match="a vocabulary of 4096 and the checkpoint one of 160"):
        evaluate(subjects(demo_out, NAMES[2:]), None, windows, checkpoint.config)


def test_only_what_is_not_on_record_is_computed(tiny, tmp_path, monkeypatch):
    opened, plain = [], score.open_scorer
    monkeypatch.setattr(score, "open_scorer", lambda s, *a: opened.append(s.name) or plain(s, *a))
    run(tiny, NAMES[:2], folder=tmp_path)
    first = run(tiny, folder=tmp_path)
    assert opened == ["mlx-fp16", "mlx-int4", "mlx-fp16", "gguf-f16"]
    assert run(tiny, folder=tmp_path).quality == first.quality
    assert len(opened) == 4
    assert run(tiny, folder=tmp_path, again=True).quality == first.quality
    assert len(opened) == 7


def test_interrupted_run_continues_where_it_was(tiny, tmp_path, scored):
    def stop(name, done):
        if done > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, NAMES[:2], folder=tmp_path, progress=stop)
    first = len(scored)
    run(tiny, NAMES[:2], folder=tmp_path)
    assert 0.6 * len(tiny[2]) < first < len(scored) == len(tiny[2])


@pytest.mark.parametrize(
    ("free", "groups"),
    [(9, [["a", "b", "c"]]), (8, [["a", "b"], ["c"]]), (0, [["a"], ["b"], ["c"]])],
)
def test_as_many_as_fit_go_together(free, groups):
    assert make_groups({"a": 2, "b": 3, "c": 4}, free) == groups
    assert make_groups({}, free) == [[]]


def test_figures_are_the_same_in_groups_that_do_not_fit(tiny, monkeypatch):
    together, seen = run(tiny), {}
    monkeypatch.setattr(module, "available_bytes", lambda: MemoryRoom(1, 1, "memory"))
    monkeypatch.delenv(FORCE, raising=False)
    with pytest.raises(EdgeError, match=f"need 0.. GB together.* or set {FORCE}=1"):
        run(tiny)
    monkeypatch.setenv(FORCE, "1")
    apart = run(tiny, progress=lambda name, done: seen.setdefault(name, []).append(done))
    assert apart.quality == together.quality
    shortage, repeats = apart.notes
    assert "GB together, and 0.0 GB of memory are available" in shortage
    assert "mlx-fp16 was computed 2 times" in repeats
    assert set(seen) == set(NAMES)
    assert all(shares == sorted(shares) and shares[-1] == 1.0 for shares in seen.values())


def test_memory_does_not_grow_with_the_corpus(tiny, monkeypatch):
    checkpoint, out, windows = tiny
    monkeypatch.setattr(score, "PIECE_BYTES", 4 * 160 * (WINDOW - 1))
    long = [np.concatenate([part] * 10) for part in (windows.ids, windows.scored, windows.bytes)]
    peaks = []
    for some in (windows, Windows(*long, windows.corpus, 0)):
        mx.clear_cache()
        mx.reset_peak_memory()
        run((checkpoint, out, some), NAMES[:2])
        peaks.append(mx.get_peak_memory())
    assert peaks[1] < 1.1 * peaks[0]

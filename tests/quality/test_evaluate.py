"""Whole evaluations of real artefacts: exact, in groups, stopped and gone on with."""

import os
import signal
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from edge.cli.model_path import DEMO
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import Corrections, open_checkpoint
from edge.convert.convert import convert
from edge.device.memory import MemoryRoom
from edge.errors import EdgeError
from edge.llama_cpp.session import LlamaSession
from edge.model.load import load_model
from edge.quality import evaluate as module
from edge.quality import lockstep, scorer
from edge.quality.evaluate import evaluate
from edge.quality.subject import Subject, fingerprint
from edge.quality.texts import SourceText
from edge.quality.windows import make_windows
from edge.tokenizer.tokenizer import Tokenizer
from tests.support.tiny import CONFIGS, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
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
    convert(checkpoint, [RECIPES[n] for n in NAMES], folder / "out", lambda *_: None)
    texts = [SourceText("a", LETTERS[:50]), SourceText("b", LETTERS[50:])]
    windows = make_windows(texts, Tokenizer.load(source), 160, "letters", WINDOW, None)
    return checkpoint, folder / "out", windows


def run(tiny, names=NAMES, reference=NAMES[0], **options):
    checkpoint, out, windows = tiny
    return evaluate(subjects(out, names), reference, windows, checkpoint.config, **options)


def figures(quality):
    """Its numbers, those of intervals included."""
    values = [v if isinstance(v, tuple) else (v,) for v in astuple(quality)]
    return [float(v) for several in values for v in several if isinstance(v, int | float)]


def independent(path, ids):
    """Log-probabilities (B, W - 1, vocab) in float64, window by window, by other calls."""
    if path.is_dir():
        model = load_model(path)
        logits = np.stack([np.array(model(mx.array(w[None, :-1])))[0] for w in ids])
    else:
        session, rows = LlamaSession(path, WINDOW, 1), []
        for window in ids:
            session.trim(0)
            for token in window[:-1]:
                session.decode([int(token)])
                rows.append(session.last_logits())
        session.close()
        logits = np.stack(rows).reshape(len(ids), WINDOW - 1, -1)
    x = logits.astype(np.float64)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_every_figure_against_an_independent_computation(tiny):
    _, out, windows = tiny
    found = run(tiny)
    log_p = independent(out / "mlx-fp16", windows.ids)
    for subject in subjects(out):
        log_q = independent(subject.path, windows.ids)
        nll = -np.take_along_axis(log_q, windows.ids[:, 1:, None], axis=-1)[..., 0]
        kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
        scores = found.scores[subject.name]
        # llama.cpp's f16 cache rounds otherwise where it computes token by token.
        near = {"rtol": 1e-3, "atol": 2e-3 if subject.name.startswith("gguf") else 2e-5}
        np.testing.assert_allclose(np.stack([s.nll for s in scores]), nll, **near)
        np.testing.assert_allclose(np.stack([s.kl for s in scores]), kl, **near)
        assert found.quality[subject.name].perplexity == pytest.approx(
            np.exp(nll[windows.scored].mean()), rel=1e-3
        )
        assert found.quality[subject.name].kl_mean == pytest.approx(
            kl[windows.scored].mean(), rel=2e-2, abs=1e-5
        )
        same = (log_q.argmax(-1) == log_p.argmax(-1))[windows.scored].mean()
        assert found.quality[subject.name].top1_agreement == pytest.approx(same, abs=0.02)
    assert found.quality["mlx-fp16"].kl_max == 0.0
    assert found.quality["mlx-int4"].kl_mean > 100 * found.quality["gguf-f16"].kl_mean > 0


def test_pieces_of_any_size_give_the_same(tiny, monkeypatch):
    whole = run(tiny)
    for piece in (1, 4 * 160 * 3, 4 * 160 * (WINDOW - 1)):
        monkeypatch.setattr(scorer, "PIECE_BYTES", piece)
        found = run(tiny)
        for name in NAMES:
            for a, b in zip(found.scores[name], whole.scores[name], strict=True):
                np.testing.assert_allclose(a.nll, b.nll, atol=5e-3)
                assert a.kl.shape == b.kl.shape


def test_a_gguf_file_may_be_the_reference(tiny):
    found = run(tiny, reference="gguf-f16")
    assert found.quality["gguf-f16"].kl_max == 0.0
    assert 0 < found.quality["mlx-fp16"].kl_mean < 1e-3


def test_without_a_reference_perplexity_is_the_same(tiny):
    alone, beside = run(tiny, reference=None), run(tiny)
    for name in NAMES:
        assert alone.quality[name].perplexity == pytest.approx(beside.quality[name].perplexity)
        assert alone.quality[name].kl_mean is None


def test_in_groups_the_figures_are_the_same(tiny, monkeypatch):
    together = run(tiny)
    monkeypatch.setattr(module, "available_bytes", lambda: MemoryRoom(1, 1 << 40, "memory"))
    apart = run(tiny)
    assert any("computed 2 times" in note for note in apart.notes)
    assert apart.quality == together.quality


def test_what_is_on_record_is_not_computed_again(tiny, tmp_path, monkeypatch):
    first = run(tiny, folder=tmp_path)
    monkeypatch.setattr(lockstep, "open_scorer", _never)
    assert run(tiny, folder=tmp_path).quality == first.quality
    with pytest.raises(AssertionError):
        run(tiny, folder=tmp_path, again=True)


def test_a_new_artefact_is_computed_without_the_old_ones(tiny, tmp_path, monkeypatch):
    run(tiny, NAMES[:2], folder=tmp_path)
    opened = _watched(monkeypatch)
    run(tiny, folder=tmp_path)
    assert [path.name for path in opened] == ["mlx-fp16", "gguf-f16.gguf"]


def test_an_interrupted_run_goes_on_where_it_was(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(scorer, "MOST_WINDOWS", 1)

    def stop(name, done):
        if done > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, folder=tmp_path, progress=stop)
    scored = []
    plain = lockstep.score
    monkeypatch.setattr(
        lockstep, "score", lambda s, r, ids, p: scored.append(ids.tolist()) or plain(s, r, ids, p)
    )
    found = run(tiny, folder=tmp_path)
    assert 0 < len(scored) < len(tiny[2]) / 2 + 1
    assert found.quality == run(tiny).quality


KILLED = """
import os, signal, sys
from pathlib import Path
from edge.convert.checkpoint import open_checkpoint
from edge.quality import scorer
from edge.quality.evaluate import evaluate
from edge.quality.subject import Subject
from edge.quality.texts import SourceText
from edge.quality.windows import make_windows
from edge.tokenizer.tokenizer import Tokenizer
source, out, folder, text = sys.argv[1:]
scorer.MOST_WINDOWS = 1
tokenizer = Tokenizer.load(Path(source))
windows = make_windows([SourceText("a", text)], tokenizer, 160, "letters", 12, None)
subjects = [Subject(n, Path(out) / n) for n in ("mlx-fp16", "mlx-int4")]
def progress(name, done):
    if done > 0.6:
        os.kill(os.getpid(), signal.SIGKILL)
config = open_checkpoint(source).config
evaluate(subjects, "mlx-fp16", windows, config, folder=Path(folder), progress=progress)
"""


def test_a_killed_run_goes_on_where_it_was(tiny, tmp_path, monkeypatch):
    checkpoint, out, _ = tiny
    source = checkpoint.source.path
    done = subprocess.run(
        [sys.executable, "-c", KILLED, source, out, tmp_path, LETTERS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=100,
    )
    assert done.returncode == -signal.SIGKILL
    (file,) = tmp_path.glob("mlx-int4-*")
    file.write_bytes(file.read_bytes()[:-5])  # as if the disk had taken no more
    windows = make_windows(
        [SourceText("a", LETTERS)], Tokenizer.load(source), 160, "letters", WINDOW, None
    )
    scored = []
    plain = lockstep.score
    monkeypatch.setattr(
        lockstep, "score", lambda s, r, ids, p: scored.extend(ids) or plain(s, r, ids, p)
    )
    two = subjects(out, NAMES[:2])
    found = evaluate(two, "mlx-fp16", windows, checkpoint.config, folder=tmp_path)
    assert 0 < len(scored) < len(windows) / 2 + 1
    whole = evaluate(two, "mlx-fp16", windows, checkpoint.config).quality
    for name in NAMES[:2]:  # other windows were computed together: not the same to the last digit
        expected = pytest.approx(figures(whole[name]), rel=1e-5, abs=1e-6)
        assert figures(found.quality[name]) == expected


def test_more_tokens_use_what_fewer_have_found(demo_out, tmp_path, monkeypatch):
    checkpoint = open_checkpoint("demo")
    text = [SourceText("x", "def f(x):\n    return x + 1\n" * 30)]
    few, many = (
        make_windows(text, Tokenizer.load(DEMO), 4096, "x", 16, tokens) for tokens in (48, 96)
    )
    two = subjects(demo_out, NAMES[:2])
    evaluate(two, "mlx-fp16", few, checkpoint.config, folder=tmp_path)
    scored = []
    plain = lockstep.score
    monkeypatch.setattr(
        lockstep, "score", lambda s, r, ids, p: scored.extend(ids) or plain(s, r, ids, p)
    )
    evaluate(two, "mlx-fp16", many, checkpoint.config, folder=tmp_path)
    known = {tuple(row) for row in few.ids.tolist()}
    assert scored
    assert not known & {tuple(row.tolist()) for row in scored}


def test_progress_ends_at_one_for_each(tiny):
    seen = {}
    run(tiny, progress=lambda name, done: seen.setdefault(name, []).append(done))
    assert set(seen) == set(NAMES)
    assert all(shares == sorted(shares) and shares[-1] == 1.0 for shares in seen.values())


def test_a_changed_artefact_has_another_fingerprint(tiny, tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes((tiny[1] / "gguf-f16.gguf").read_bytes())
    before = fingerprint(file)
    assert fingerprint(file) == before
    os.utime(file, ns=(1, 1))
    assert fingerprint(file) != before


def test_random_weights_are_refused(tmp_path):
    corrections = Corrections(layers=1)
    checkpoint = open_checkpoint("synthetic:stable-code-3b", corrections=corrections)
    made = tmp_path / "mlx-int4"
    _only_manifest(checkpoint, made)
    with pytest.raises(EdgeError, match="has random weights: they have no quality"):
        evaluate([Subject("mlx-int4", made)], None, None, checkpoint.config)


def _only_manifest(checkpoint, path):
    """What the check reads of an artefact, without its gigabyte."""
    from edge.convert.artefacts.manifest import Manifest, write_manifest

    path.mkdir()
    source = checkpoint.source
    write_manifest(
        path,
        Manifest("mlx-int4", source.origin, None, source.synthetic, "", {}, {}, False, 4.5, {}, {}),
    )


def test_artefacts_of_different_models_are_refused(tiny, demo_out):
    checkpoint, out, windows = tiny
    mixed = [Subject("mlx-fp16", out / "mlx-fp16"), Subject("gguf-f16", demo_out / "gguf-f16.gguf")]
    with pytest.raises(EdgeError, match="made from different checkpoints"):
        evaluate(mixed, "mlx-fp16", windows, checkpoint.config)


@pytest.mark.parametrize("name", ["mlx-fp16", "gguf-f16"])
def test_another_vocabulary_is_refused(name, tiny, demo_out):
    checkpoint, _, windows = tiny
    with pytest.raises(EdgeError, match="a vocabulary of 4096 and the checkpoint one of 160"):
        evaluate(subjects(demo_out, [name]), None, windows, checkpoint.config)


def _never(*_):
    raise AssertionError("nothing was to be computed")


def _watched(monkeypatch):
    opened, plain = [], lockstep.open_scorer
    monkeypatch.setattr(
        lockstep, "open_scorer", lambda path, w, t: opened.append(path) or plain(path, w, t)
    )
    return opened


def test_memory_does_not_grow_with_the_corpus(tiny, monkeypatch):
    checkpoint, out, _ = tiny
    monkeypatch.setattr(scorer, "PIECE_BYTES", 4 * 160 * (WINDOW - 1))
    tokenizer, peaks = Tokenizer.load(checkpoint.source.path), []
    for repeated in (1, 10):
        texts = [SourceText("a", LETTERS * repeated)]
        windows = make_windows(texts, tokenizer, 160, "letters", WINDOW, None)
        mx.clear_cache()
        mx.reset_peak_memory()
        evaluate(subjects(out, NAMES[:2]), "mlx-fp16", windows, checkpoint.config)
        peaks.append(mx.get_peak_memory())
    assert peaks[1] < 1.1 * peaks[0]

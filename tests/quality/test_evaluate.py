"""Evaluations of real artefacts, and figures against their definitions."""

import json
import math
import statistics
from itertools import count

import mlx.core as mx
import numpy as np
import pytest
from msgspec import structs

from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.device.memory import MemoryRoom
from edge.errors import EdgeError
from edge.formats.files import DEMO_PATH
from edge.model.load import load_model
from edge.model.memory import FORCE
from edge.quality import evaluate as module
from edge.quality import score
from edge.quality.corpus import Corpus, SourceText, Windows, make_windows
from edge.quality.evaluate import (
    NO_REFERENCE,
    NOT_FINITE,
    ONE_WINDOW,
    evaluate,
    make_groups,
    summarise,
)
from edge.quality.records import Subject
from edge.quality.score import SCORE
from edge.quality.table import _worst_text, worst
from edge.stats import interval
from edge.tokenizer.tokenizer import Tokenizer
from tests.support.conversions import make
from tests.support.ranks import pair
from tests.support.tiny import CONFIGS, write_checkpoint

NAMES = ("mlx-fp16", "mlx-int4", "gguf-f16")
WINDOW = 12
LETTERS = "".join(chr(33 + i * i % 90) for i in range(9 * WINDOW))


def subjects(out, names=NAMES):
    return [Subject(name, RECIPES[name].path_in(out)) for name in names]


def letters(tokenizer):
    texts = [SourceText("a", LETTERS[:50]), SourceText("b", LETTERS[50:])]
    return make_windows(texts, tokenizer, "letters", WINDOW, None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint, its artefacts and its windows."""
    folder = tmp_path_factory.mktemp("tiny")
    source = write_checkpoint(folder / "source", CONFIGS["theta-1e6"])
    checkpoint = open_checkpoint(str(source))
    make(source, folder / "out", *NAMES)
    return checkpoint, folder / "out", letters(Tokenizer.load(source))


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


def test_two_ranks_share_the_windows_and_have_the_figures_of_one(run, tiny, tmp_path, monkeypatch):
    scored, plain = [], score.score
    monkeypatch.setattr(
        score, "score", lambda s, r, ids, p: scored.append(len(ids)) or plain(s, r, ids, p)
    )
    alone, (checkpoint, out, _) = run(), tiny
    found = pair("rank_evaluate.py", checkpoint.source.path, out, tmp_path, *NAMES)
    assert [sum(one["scored"]) for one in found] == [sum(scored[::2]), sum(scored[1::2])]
    quality = {name: structs.asdict(one) for name, one in alone.quality.items()}
    assert [one["quality"] for one in found] == [json.loads(json.dumps(quality))] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["0"]  # rank 1 stores nothing


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


# --- figures

N, P = 6, 7
CORPUS = Corpus("corpus", "", 1, 100)
SOME_IDS = np.random.RandomState(0).randint(0, 4096, (N, P))


def windows_of(scored=None):
    scored = np.ones((N, P), bool) if scored is None else scored
    ids = np.zeros((len(scored), P + 1), np.int32)
    return Windows(ids, scored, 3 * scored.astype(np.int32), CORPUS, 0)


def some(seed, **columns):
    """Random scores (N, P) with the given columns."""
    rng = np.random.RandomState(seed)
    found = np.zeros((N, P), SCORE)
    random = {"nll": rng.gamma(2, 1, (N, P)), "kl": rng.gamma(0.5, 0.1, (N, P))}
    for name, column in {**random, "top": rng.randint(0, 2, (N, P)), **columns}.items():
        found[name] = column
    return found


def test_figures_of_equal_windows():
    own, other = some(1), some(2)
    found = summarise(windows_of(), own, other)
    nll, kl, others = (x.astype(np.float64) for x in (own["nll"], own["kl"], other["nll"]))
    differences = (nll - others).mean(axis=1).tolist()
    nll = nll.mean(axis=1).tolist()
    perplexity = math.exp(statistics.fmean(nll))
    same = (own["top"] == other["top"]).mean(axis=1).tolist()
    expected = {
        "perplexity": perplexity,
        "perplexity_se": perplexity * statistics.stdev(nll) / math.sqrt(N),
        "bits_per_byte": statistics.fmean(nll) / math.log(2) / 3,
        "perplexity_ratio": math.exp(statistics.fmean(differences)),
        "perplexity_ratio_ci95": [math.exp(x) for x in interval(differences)],
        "kl_mean": kl.mean(),
        "kl_mean_ci95": [max(0.0, x) for x in interval(kl.mean(axis=1).tolist())],
        "kl_p99": np.quantile(kl, 0.99),
        "kl_max": kl.max(),
        "top1_agreement": statistics.fmean(same),
        "top1_agreement_ci95": interval(same),
        "tokens": N * P,
        "windows": N,
        "reasons": [],
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value), name


def test_standard_error_of_unequal_windows_is_the_ratio_estimators():
    scored = np.random.RandomState(3).rand(N, P) < 0.6
    scored[2] = False
    own = some(1)
    found = summarise(windows_of(scored), own, some(2))
    sums, counts = (own["nll"].astype(np.float64) * scored).sum(axis=1), scored.sum(axis=1)
    mean, n = sums.sum() / counts.sum(), N - 1
    variance = n / (n - 1) * ((sums - mean * counts) ** 2).sum() / counts.sum() ** 2
    assert found.perplexity == pytest.approx(math.exp(mean))
    assert found.perplexity_se == pytest.approx(math.exp(mean) * math.sqrt(variance))
    assert (found.tokens, found.windows) == (counts.sum(), n)


def test_missing_figures_have_a_reason():
    alone = summarise(windows_of(), some(1), None)
    assert alone.perplexity is not None
    assert alone.kl_mean is alone.top1_agreement is alone.perplexity_ratio_ci95 is None
    assert alone.reasons == (NO_REFERENCE,)
    one = summarise(windows_of(np.ones((1, P), bool)), some(1)[:1], some(2)[:1])
    assert one.perplexity_se is one.perplexity_ratio_ci95 is one.kl_mean_ci95 is None
    assert one.reasons == (ONE_WINDOW,)


def test_broken_artefact_has_no_or_finite_figures():
    for bad in (np.nan, np.inf):
        found = summarise(windows_of(), some(1, nll=bad), some(2))
        assert found.perplexity is found.kl_mean is None
        assert found.reasons == (NOT_FINITE,)
    found = summarise(windows_of(), some(1, nll=1e7), some(2))
    json.dumps(structs.asdict(found), allow_nan=False)
    assert found.perplexity > 1e200


def test_worst_positions_are_sorted_and_in_context():
    text = "\x1b\x1b\x1bimport os\n\n\ndef f(x):\n\treturn os.path.join(x, '\x1b[31m')\n" * 6
    tokenizer = Tokenizer.load(DEMO_PATH)
    cut = make_windows([SourceText("x", text)], tokenizer, "x", P + 1, N * (P + 1))
    cut.scored[:, 3:] = False
    own, other = (some(seed, top=SOME_IDS, top_log_q=-1) for seed in (1, 2))
    found = worst(cut, own, other, tokenizer, 1000)
    kl = sorted(own["kl"][cut.scored], reverse=True)
    assert [place["kl"] for place in found] == pytest.approx(kl)
    for place in found:
        w, i = place["window"], place["position"]
        token = tokenizer.decode([int(cut.ids[w, i])])
        assert place["next"] == "".join(c if c.isprintable() else repr(c)[1:-1] for c in token)
        chance = np.exp(-float(other["nll"][w, i - 1]))
        assert place["reference"]["probability_of_next"] == pytest.approx(chance)
    text = _worst_text({"artefact": "mlx-int4", "worst": found})
    assert text.replace("\n", "").isprintable() and "x1b" in text

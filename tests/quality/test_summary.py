"""Figures against their definitions, and the positions with the largest KL divergence."""

import json
import math
import statistics

import numpy as np
import pytest
from msgspec import structs

from edge.cli.model_path import DEMO
from edge.quality.corpus import Corpus, SourceText, Windows, make_windows
from edge.quality.evaluate import NO_REFERENCE, NOT_FINITE, ONE_WINDOW, summarise
from edge.quality.score import SCORE
from edge.quality.table import _worst_text, worst
from edge.stats import interval
from edge.tokenizer.tokenizer import Tokenizer

N, P = 6, 7
CORPUS = Corpus("corpus", "", 1, 100)
SOME_IDS = np.random.RandomState(0).randint(0, 4096, (N, P))


def windows(scored=None):
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
    found = summarise(windows(), own, other)
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
    found = summarise(windows(scored), own, some(2))
    sums, counts = (own["nll"].astype(np.float64) * scored).sum(axis=1), scored.sum(axis=1)
    mean, n = sums.sum() / counts.sum(), N - 1
    variance = n / (n - 1) * ((sums - mean * counts) ** 2).sum() / counts.sum() ** 2
    assert found.perplexity == pytest.approx(math.exp(mean))
    assert found.perplexity_se == pytest.approx(math.exp(mean) * math.sqrt(variance))
    assert (found.tokens, found.windows) == (counts.sum(), n)


def test_missing_figures_have_a_reason():
    alone = summarise(windows(), some(1), None)
    assert alone.perplexity is not None
    assert alone.kl_mean is alone.top1_agreement is alone.perplexity_ratio_ci95 is None
    assert alone.reasons == (NO_REFERENCE,)
    one = summarise(windows(np.ones((1, P), bool)), some(1)[:1], some(2)[:1])
    assert one.perplexity_se is one.perplexity_ratio_ci95 is one.kl_mean_ci95 is None
    assert one.reasons == (ONE_WINDOW,)


def test_broken_artefact_has_no_or_finite_figures():
    for bad in (np.nan, np.inf):
        found = summarise(windows(), some(1, nll=bad), some(2))
        assert found.perplexity is found.kl_mean is None
        assert found.reasons == (NOT_FINITE,)
    found = summarise(windows(), some(1, nll=1e7), some(2))
    json.dumps(structs.asdict(found), allow_nan=False)
    assert found.perplexity > 1e200


def test_worst_positions_are_sorted_and_in_context():
    text = "import os\n\n\ndef f(x):\n\treturn os.path.join(x, '\x1b[31m')\n" * 6
    tokenizer = Tokenizer.load(DEMO)
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

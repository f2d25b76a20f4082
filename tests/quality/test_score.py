"""Scores of positions against float64, and the size of a scoring step."""

import mlx.core as mx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge.quality.score import log_softmax, scores_of

SEEDS = st.integers(0, 2**31)


def check_scores(p, q, kl_rtol, targets=None):
    """Compare scores of logits q with reference logits p to float64."""
    targets = np.zeros(len(p), np.int32) if targets is None else targets
    log_p, log_q = (
        x - np.log(np.exp(x).sum(axis=1, keepdims=True))
        for x in (p.astype(np.float64), q.astype(np.float64))
    )
    found = scores_of(log_softmax(mx.array(q)), mx.array(targets), log_softmax(mx.array(p)))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    nll = [-row[target] for row, target in zip(log_q, targets, strict=True)]
    np.testing.assert_allclose(found["nll"], nll, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found["kl"], kl, rtol=kl_rtol, atol=2e-5 if kl_rtol < 1e-2 else 0)
    assert np.array_equal(found["top"], q.argmax(axis=1))
    np.testing.assert_allclose(found["top_log_q"], log_q.max(axis=1), atol=1e-4)


@given(SEEDS, st.integers(2, 300), st.floats(0.01, 8))
def test_scores_against_brute_force(seed, vocab, scale):
    rng = np.random.RandomState(seed)
    p = (scale * rng.standard_normal((5, vocab))).astype(np.float32)
    q = (p + 0.3 * scale * rng.standard_normal((5, vocab))).astype(np.float32)
    check_scores(p, q, 2e-4, rng.randint(0, vocab, 5).astype(np.int32))


@given(SEEDS, st.floats(-30, 30), st.sampled_from([1e-4, 1e-3, 1e-2]))
def test_divergence_of_half_precisions_is_exact(seed, shift, difference):
    rng = np.random.RandomState(seed)
    p = (3 * rng.standard_normal((8, 500)) + shift).astype(np.float32)
    check_scores(p, (p + difference * rng.standard_normal(p.shape)).astype(np.float32), 2e-2)


def test_divergence_of_zero_probabilities_is_exact():
    check_scores(np.array([[0, -200, 0]], np.float32), np.array([[0, 0, -90]], np.float32), 1e-5)


def test_divergence_is_zero_for_the_reference_and_never_negative():
    logits, targets = mx.random.normal((6, 90)), mx.zeros(6, mx.int32)
    log_p = log_softmax(logits)
    assert scores_of(log_p, targets, log_p)["kl"].tolist() == [0.0] * 6
    assert np.isnan(scores_of(log_p, targets, None)["kl"]).all()
    for shift in (-1000, -1, 1000):
        kl = scores_of(log_softmax(logits + shift), targets, log_p)["kl"]
        assert 0 <= kl.min() <= kl.max() < 1e-4

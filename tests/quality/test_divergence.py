"""Figures per position against the same sums in float64."""

import mlx.core as mx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge.quality.divergence import concatenated, log_probabilities, scores_of, to_numpy


def brute_force(p_logits, q_logits, targets):
    p, q = (x.astype(np.float64) for x in (p_logits, q_logits))
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    nll = [-log_q[i, t] for i, t in enumerate(targets)]
    return np.array(nll), (np.exp(log_p) * (log_p - log_q)).sum(axis=1), q.argmax(axis=1)


def scored(p_logits, q_logits, targets):
    log_p, log_q = (log_probabilities(mx.array(x)) for x in (p_logits, q_logits))
    return to_numpy(scores_of(log_q, mx.array(targets), log_p))


@given(st.integers(0, 2**31), st.integers(2, 300), st.floats(0.01, 8))
def test_against_brute_force(seed, vocab, scale):
    rng = np.random.RandomState(seed)
    p = (scale * rng.standard_normal((5, vocab))).astype(np.float32)
    q = (p + 0.3 * scale * rng.standard_normal((5, vocab))).astype(np.float32)
    targets = rng.randint(0, vocab, 5).astype(np.int32)
    nll, kl, top = brute_force(p, q, targets)
    found = scored(p, q, targets)
    np.testing.assert_allclose(found.nll, nll, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found.kl, kl, rtol=2e-4, atol=2e-5)
    assert np.array_equal(found.top, top)
    np.testing.assert_allclose(np.exp(found.top_log_probability), _chance(q, top), rtol=1e-4)


@given(st.integers(0, 2**31), st.floats(-30, 30), st.sampled_from([1e-4, 1e-3, 1e-2]))
def test_as_little_as_two_half_precisions_differ_is_measured_too(seed, shift, difference):
    rng = np.random.RandomState(seed)
    p = (3 * rng.standard_normal((8, 500)) + shift).astype(np.float32)
    q = (p + difference * rng.standard_normal(p.shape)).astype(np.float32)
    targets = np.zeros(8, np.int32)
    _, kl, _ = brute_force(p, q, targets)
    np.testing.assert_allclose(scored(p, q, targets).kl, kl, rtol=2e-2)


def test_what_one_of_them_rules_out_is_counted():
    p, q = np.array([[0, -200, 0]], np.float32), np.array([[0, 0, -90]], np.float32)
    _, kl, _ = brute_force(p, q, [0])
    np.testing.assert_allclose(scored(p, q, np.zeros(1, np.int32)).kl, kl, rtol=1e-5)


def _chance(logits, ids):
    chances = np.exp(logits.astype(np.float64))
    return (chances / chances.sum(axis=1, keepdims=True))[range(len(ids)), ids]


@given(st.integers(0, 2**31), st.floats(-1000, 1000))
def test_a_shift_of_all_logits_is_no_divergence(seed, shift):
    logits = np.random.RandomState(seed).standard_normal((4, 50)).astype(np.float32)
    found = scored(logits, (logits + np.float32(shift)).astype(np.float32), np.zeros(4, np.int32))
    assert (found.kl >= 0).all()
    assert found.kl.max() < 1e-4


def test_the_reference_itself_diverges_by_nothing_at_all():
    log_p = log_probabilities(mx.random.normal((6, 90)))
    assert to_numpy(scores_of(log_p, mx.zeros(6, mx.int32), log_p)).kl.tolist() == [0.0] * 6


def test_without_a_reference_there_is_no_divergence():
    log_q = log_probabilities(mx.random.normal((6, 90)))
    found = to_numpy(scores_of(log_q, mx.zeros(6, mx.int32), None))
    assert np.isnan(found.kl).all()
    assert np.isfinite(found.nll).all()


def test_half_precision_logits_are_summed_in_float32():
    logits = mx.zeros((1, 4096), mx.float16)
    assert abs(float(log_probabilities(logits)[0, 0]) + np.log(4096)) < 1e-5


def test_parts_and_sums_of_scores():
    log_q = log_probabilities(mx.random.normal((6, 9)))
    whole = to_numpy(scores_of(log_q, mx.zeros(6, mx.int32), log_q))
    again = concatenated([whole[slice(0, 2)], whole[slice(2, 6)]])
    for a, b in zip(again.columns, whole.columns, strict=True):
        assert np.array_equal(a, b)

"""From logits to figures per position: one arithmetic for every framework, in float32 on MLX.

For each position, with p the reference's distribution and q the artefact's: how surprising the
true next token was, -log q(token); Kullback and Leibler's divergence, the sum of
p log(p / q) over the whole vocabulary, without sampling or cutting; and what q has on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Tops = np.ndarray[Any, np.dtype[np.int32]]
# Nats: so close to each other, q - p is taken from p (q / p - 1), which keeps its digits.
NEAR = 0.25


@dataclass(frozen=True)
class Scores:
    """Of one artefact at some positions, each an array (positions,).

    Attributes:
        nll: nats of surprise at the true token.
        kl: nats of divergence from the reference; NaN without one.
        top: the id that is most probable.
        top_log_probability: of that id.
    """

    nll: Floats
    kl: Floats
    top: Tops
    top_log_probability: Floats

    def __getitem__(self, part: slice) -> Scores:
        nll, kl, top, probability = self.columns
        return Scores(nll[part], kl[part], top[part], probability[part])

    @property
    def columns(self) -> tuple[Floats, Floats, Tops, Floats]:
        """All of them, in order."""
        return self.nll, self.kl, self.top, self.top_log_probability


def concatenated(parts: list[Scores]) -> Scores:
    """Scores of some positions after those of others."""
    nll, kl, top, probability = (
        np.concatenate(columns) for columns in zip(*(p.columns for p in parts), strict=True)
    )
    return Scores(nll, kl, top, probability)


def log_probabilities(logits: mx.array) -> mx.array:
    """Logits (n, vocab) -> log-softmax (n, vocab), float32."""
    return _log_softmax(logits.astype(mx.float32))


def scores_of(
    log_q: mx.array, targets: mx.array, log_p: mx.array | None
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """The figures of `Scores`, yet to be evaluated.

    Args:
        log_q: the artefact's log-probabilities (n, vocab).
        targets: the true next ids (n,).
        log_p: the reference's; the same array where it is the reference, None without one.
    """
    nll = -mx.take_along_axis(log_q, targets[:, None], axis=-1)[:, 0]
    if log_p is None:
        kl = mx.full(nll.shape, mx.nan)
    else:
        kl = mx.zeros(nll.shape) if log_p is log_q else _divergence(log_p, log_q)
    top = mx.argmax(log_q, axis=-1).astype(mx.int32)
    return nll, kl, top, mx.max(log_q, axis=-1)


def to_numpy(arrays: tuple[mx.array, mx.array, mx.array, mx.array]) -> Scores:
    """Evaluate them."""
    mx.eval(arrays)
    nll, kl, top, probability = (np.array(a) for a in arrays)
    return Scores(nll, kl, top, probability)


@partial(mx.compile, shapeless=True)
def _log_softmax(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


@partial(mx.compile, shapeless=True)
def _divergence(log_p: mx.array, log_q: mx.array) -> mx.array:
    """Over the last axis.

    Summed as p log(p / q) - p + q, which comes to the same because both sum to 1. No term of it is
    negative, so nothing cancels: the plain sum is off by the rounding of both normalisers, 1e-6 or
    more, which is as much as two half precisions differ.
    """
    p, ratio = mx.exp(log_p), log_p - log_q
    is_near = mx.abs(ratio) < NEAR
    near = p * (ratio + mx.expm1(-mx.where(is_near, ratio, 0.0)))
    far = p * ratio - p + mx.exp(log_q)
    return mx.sum(mx.where(is_near, near, far), axis=-1)

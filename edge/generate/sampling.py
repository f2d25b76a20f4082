"""How the next token is chosen: greedily, or drawn with a key of its own.

The filters (top-p, min-p, top-k) and the penalty are mlx-lm's, in mlx-lm's order. The draw is
ours, because mlx-lm's takes its randomness from MLX's global state: here every generation with
a seed has its own key, so nothing else that draws numbers can change its text. The key is split
as MLX splits the global one, so that a seed gives what mlx-lm gives after `mx.random.seed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from edge.errors import EdgeError

# Logits (1, vocab) -> the token's id (1,).
Sampler = Callable[[mx.array], mx.array]
# Ids so far (n,) and logits (1, vocab) -> logits (1, vocab).
Processor = Callable[[mx.array, mx.array], mx.array]


@dataclass(frozen=True)
class Sampling:
    """What decides the next token; the defaults are greedy.

    Args:
        temperature: 0 takes the most probable token; the filters then change nothing.
        top_p: keep the smallest set of tokens with this share of the probability; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        min_p: keep what has at least this share of the best token's probability; 0 keeps all.
        repetition_penalty: above 1 makes recent tokens less likely, also when greedy.
        repetition_context: how many of the last tokens, prompt included, count as recent.
        seed: the same seed gives the same tokens on the same machine, whatever else draws
            numbers meanwhile. None draws from MLX's global state, as mlx-lm does.

    Raises:
        EdgeError: a value outside its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    repetition_context: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        penalty = 1.0 if self.repetition_penalty is None else self.repetition_penalty
        seed = 0 if self.seed is None else self.seed
        # Written as "not within", so that NaN is refused as well.
        _check(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 or more")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1, which keeps all")
        _check(self.top_k >= 0, "top_k", self.top_k, "0, which keeps all, or more")
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "between 0, which keeps all, and 1")
        _check(0 < penalty < math.inf, "repetition_penalty", penalty, "above 0; 1 does nothing")
        context = self.repetition_context
        _check(context >= 1, "repetition_context", context, "at least 1 token")
        _check(0 <= seed < 2**64, "seed", seed, "a whole number from 0 to 2**64 - 1")

    def sampler(self) -> Sampler:
        """A fresh sampler: one for each generation, since it holds the state of the draw."""
        if self.temperature == 0:
            return _most_probable
        if self.seed is None:
            return lambda logits: mx.random.categorical(self._filtered(logits))
        return _Drawn(self._filtered, self.seed)

    def processors(self) -> list[Processor]:
        """What changes the logits before the sampler sees them; often empty."""
        from mlx_lm.sample_utils import make_logits_processors

        if self.repetition_penalty in (None, 1.0):
            return []
        processors: list[Processor] = make_logits_processors(
            repetition_penalty=self.repetition_penalty,
            repetition_context_size=self.repetition_context,
        )
        return processors

    def _filtered(self, logits: mx.array) -> mx.array:
        """Logits (1, vocab) -> logits (1, vocab) to draw from, in float32, -inf where cut.

        Half precision would round neighbouring logits of about 20 to steps of 1/64.
        """
        from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

        logits = logits.astype(mx.float32)
        logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if self.top_p < 1:
            logits = apply_top_p(logits, self.top_p)
        if self.min_p > 0:
            logits = apply_min_p(logits, self.min_p)
        if 0 < self.top_k < logits.shape[-1]:
            logits = apply_top_k(logits, self.top_k)
        return logits * (1 / self.temperature)


class _Drawn:
    """Draws with a key that nobody else uses."""

    def __init__(self, filtered: Callable[[mx.array], mx.array], seed: int):
        self._filtered = filtered
        self._key = mx.random.key(seed)

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits (1, vocab) -> id (1,)."""
        self._key, now = mx.random.split(self._key)
        return mx.random.categorical(self._filtered(logits), key=now)


def _most_probable(logits: mx.array) -> mx.array:
    """Needs no probabilities: softmax keeps the order."""
    return mx.argmax(logits, axis=-1)


def _check(fits: bool, name: str, value: float, wanted: str) -> None:
    if not fits:
        raise EdgeError(f"the sampling value {name} is {value}; choose {wanted}.")


GREEDY = Sampling()

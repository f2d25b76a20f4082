"""How the next token is chosen: greedily, or drawn with a key of its own.

The filters (top-p, min-p, top-k) and the penalty are mlx-lm's, in mlx-lm's order. The draw is
ours, because mlx-lm's takes its randomness from MLX's global state: here every generation with
a seed has its own key, so nothing else that draws numbers can change its text. The key is split
as MLX splits the global one, so that a seed gives what mlx-lm gives after `mx.random.seed`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx

from edge.errors import EdgeError

# Logits (1, vocab) -> the token's id (1,).
Sampler = Callable[[mx.array], mx.array]
# Ids so far (n,) and logits (1, vocab) -> logits (1, vocab).
Processor = Callable[[mx.array, mx.array], mx.array]
# How far logits of a pass over several tokens may be from those of single steps, as a share of
# the largest, by dtype (see `certain`). Half precision against full precision, which bounds what
# another order of summing does, is 0.0027 at most on the demo (float16).
ROUNDING_SHARE = {mx.float32: 2**-16, mx.float16: 2**-8, mx.bfloat16: 2**-5}


@cache
def mlx_lm_samplers() -> Any:
    """The module mlx_lm.sample_utils, which needs nothing but mlx.

    Loaded as a file: importing its package would import transformers, which takes more than a
    second, and would be most of the time to the first token.
    """
    package = importlib.util.find_spec("mlx_lm")
    assert package is not None and package.submodule_search_locations
    file = Path(package.submodule_search_locations[0]) / "sample_utils.py"
    spec = importlib.util.spec_from_file_location("edge.generate._mlx_lm_sample_utils", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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

    @property
    def looks_back(self) -> int:
        """How many of a prompt's last tokens the choice depends on, the very last included."""
        return 1 if self.repetition_penalty in (None, 1.0) else self.repetition_context

    def sampler(self) -> Sampler:
        """A fresh sampler: one for each generation, since it holds the state of the draw."""
        if self.temperature == 0:
            return _most_probable
        if self.seed is None:
            return lambda logits: mx.random.categorical(self._filtered(logits))
        return _Drawn(self._filtered, self.seed)

    def processors(self) -> list[Processor]:
        """What changes the logits before the sampler sees them; often empty."""
        if self.repetition_penalty in (None, 1.0):
            return []
        processors: list[Processor] = mlx_lm_samplers().make_logits_processors(
            repetition_penalty=self.repetition_penalty,
            repetition_context_size=self.repetition_context,
        )
        return processors

    def _filtered(self, logits: mx.array) -> mx.array:
        """Logits (1, vocab) -> logits (1, vocab) to draw from, in float32, -inf where cut.

        Half precision would round neighbouring logits of about 20 to steps of 1/64.
        """
        logits = logits.astype(mx.float32)
        logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if self.top_p < 1 or self.min_p > 0 or 0 < self.top_k < logits.shape[-1]:
            logits = self._cut(logits)
        return logits * (1 / self.temperature)

    def _cut(self, logits: mx.array) -> mx.array:
        """Log-probabilities (1, vocab) -> the same, -inf where a filter cuts."""
        theirs = mlx_lm_samplers()
        if self.top_p < 1:
            logits = theirs.apply_top_p(logits, self.top_p)
        if self.min_p > 0:
            logits = theirs.apply_min_p(logits, self.min_p)
        if 0 < self.top_k < logits.shape[-1]:
            logits = theirs.apply_top_k(logits, self.top_k)
        return logits


class _Drawn:
    """Draws with a key that nobody else uses."""

    def __init__(self, filtered: Callable[[mx.array], mx.array], seed: int):
        self._filtered = filtered
        self.key = mx.random.key(seed)

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits (1, vocab) -> id (1,)."""
        self.key, now = mx.random.split(self.key)
        return mx.random.categorical(self._filtered(logits), key=now)


class Picker:
    """Chooses one id after another, remembering what the penalty and the draw need.

    Args:
        sampling: how.
        prompt: the ids before the first chosen one, for the penalty.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int]):
        self._greedy = sampling.temperature == 0
        self._sample: Any = sampling.sampler()
        self._processors = sampling.processors()
        self._window = sampling.repetition_context
        self._recent = mx.array(list(prompt[-self._window :]))

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits (1, vocab) -> the next id (1,)."""
        return self._choose(self._processed(logits))

    def several(self, logits: mx.array) -> tuple[mx.array, mx.array, list[Any]]:
        """Choose at consecutive positions, each as if the one before were what was chosen there.

        Args:
            logits: (n, vocab).

        Returns:
            The ids (n,); where they are certain (n,); and for each position the state after it,
            for `restore` when what follows it turns out not to count.
        """
        if self._greedy and not self._processors:
            return _most_probable(logits), certain(logits), [self.state()] * len(logits)
        ids, sure, states = [], [], []
        for row in mx.split(logits, len(logits)):
            scores = self._processed(row)
            ids.append(self._choose(scores))
            sure.append(certain(scores) if self._greedy else mx.array([True]))
            states.append(self.state())
        return mx.concatenate(ids), mx.concatenate(sure), states

    def restore(self, state: Any, left: Any) -> None:
        """Go back to a state that `state` or `several` gave, from the one it was left in.

        MLX's global state is not put back where somebody else has drawn from it meanwhile.
        """
        key, self._recent = state
        if isinstance(self._sample, _Drawn):
            self._sample.key = key
        elif not self._greedy and mx.array_equal(_shared_key(), left[0]):
            _shared_key()[:] = key

    def state(self) -> Any:
        """What `restore` takes."""
        if isinstance(self._sample, _Drawn):
            return self._sample.key, self._recent
        # Without a seed MLX's global state is drawn from, and put back like a key of our own.
        return None if self._greedy else mx.array(_shared_key()), self._recent

    def _processed(self, logits: mx.array) -> mx.array:
        for process in self._processors:
            logits = process(self._recent, logits)
        return logits

    def _choose(self, scores: mx.array) -> mx.array:
        token: mx.array = self._sample(scores)
        if self._processors:
            # mlx-lm carries the whole text along; nothing before the window has an effect.
            self._recent = mx.concatenate([self._recent, token])[-self._window :]
        return token


def certain(logits: mx.array) -> mx.array:
    """Whether rounding cannot have made the most probable token: logits (n, vocab) -> bools (n,).

    A pass over several tokens may sum in another order than a step over one, so that of two
    almost equal logits either may come out ahead.
    """
    best = mx.argmax(logits, axis=-1, keepdims=True)
    first = mx.take_along_axis(logits, best, axis=-1)[:, 0].astype(mx.float32)
    lowest = mx.array(-math.inf, dtype=logits.dtype)
    second = mx.put_along_axis(logits, best, lowest, axis=-1).max(axis=-1).astype(mx.float32)
    largest = mx.abs(logits).max(axis=-1).astype(mx.float32)
    return first - second > largest * ROUNDING_SHARE[logits.dtype]


def _shared_key() -> mx.array:
    """The key in MLX's global state, for which MLX itself puts others, or writes into it."""
    key: mx.array = mx.random.state[0]  # type: ignore[index]  # the stubs say object
    return key


def _most_probable(logits: mx.array) -> mx.array:
    """Needs no probabilities: softmax keeps the order."""
    return mx.argmax(logits, axis=-1)


def _check(fits: bool, name: str, value: float, wanted: str) -> None:
    if not fits:
        raise EdgeError(f"the sampling value {name} is {value}; choose {wanted}.")


GREEDY = Sampling()

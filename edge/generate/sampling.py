"""Choice of the next token, greedy or sampled.

The filters (top-p, min-p, top-k) and the penalty are mlx-lm's, in mlx-lm's order. mlx-lm draws
from MLX's global random state; here each generation has its own key, so other draws cannot change
its text. The key is split as MLX splits the global one: a seed gives the tokens that mlx-lm gives
after `mx.random.seed`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from typing import Any

import mlx.core as mx

from edge.errors import EdgeError

# Bound for the difference between logits of a pass over several tokens, which may sum in another
# order, and those of single steps, as a share of the largest. On the demo half precision differs
# from full precision by 0.0027 at most (float16).
ROUNDING_SHARE = {mx.float32: 2**-16, mx.float16: 2**-8, mx.bfloat16: 2**-5}
# The same where keys and values are quantised to 8 or 4 bits: one of them may be rounded to another
# code. On the demo with 8 bits that changed logits by 0.0011 of the largest.
CODES_SHARE = {8: 2**-8, 4: 2**-5}
SUM_ROUNDING = 2**-18  # of a sum of probabilities in float32
# Ids so far (n,) and logits (1, vocab) -> logits (1, vocab).
Penalty = Callable[[mx.array, mx.array], mx.array]
# Called with the model's logits (1, vocab) and the id chosen (1,), not yet computed.
OnPick = Callable[[mx.array, mx.array], None]


@dataclass(frozen=True)
class Sampling:
    """Sampling settings as in mlx-lm; the defaults are greedy, where the filters have no effect.

    The last `repetition_context` tokens, prompt included, are penalised, also when greedy. A seed
    of None is drawn from MLX's global state.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    repetition_context: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        penalty, seed = self.repetition_penalty, self.seed
        # Each test is "within the range", which NaN fails too.
        penalty_fits = penalty is None or 0 < penalty < math.inf
        ranges: dict[str, tuple[bool, str]] = {
            "temperature": (0 <= self.temperature < math.inf, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1, which keeps all"),
            "top_k": (self.top_k >= 0, "0, which keeps all, or more"),
            "min_p": (0 <= self.min_p <= 1, "between 0, which keeps all, and 1"),
            "repetition_penalty": (penalty_fits, "above 0; 1 does nothing"),
            "repetition_context": (self.repetition_context >= 1, "at least 1 token"),
            "seed": (seed is None or 0 <= seed < 2**64, "a whole number from 0 to 2**64 - 1"),
        }
        for name, (fits, wanted) in ranges.items():
            if not fits:
                value = getattr(self, name)
                raise EdgeError(f"the sampling value {name} is {value}; choose {wanted}.")

    @classmethod
    def from_options(cls, options: Any) -> Sampling:
        """The settings of command-line options with these names."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        return cls(**{name: getattr(options, name) for name in names})

    @property
    def looks_back(self) -> int:
        """Number of last prompt tokens that the next choice depends on."""
        return 1 if self.repetition_penalty in (None, 1.0) else self.repetition_context

    def filtered(self, logits: mx.array) -> mx.array:
        """Logits (1, vocab) -> float32 logits (1, vocab) to draw from, -inf where cut."""
        logits = logits.astype(mx.float32)
        logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if self.top_p < 1:
            logits = _mlx_lm_samplers().apply_top_p(logits, self.top_p)
        if self.min_p > 0:
            logits = _mlx_lm_samplers().apply_min_p(logits, self.min_p)
        if 0 < self.top_k < logits.shape[-1]:
            logits = _mlx_lm_samplers().apply_top_k(logits, self.top_k)
        return logits * (1 / self.temperature)


class Picker:
    """Chooses the ids of one generation; setting `state` goes back to an earlier choice.

    `kv_bits` are those of the cache that the logits are computed with.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        on_pick: OnPick | None = None,
        kv_bits: int | None = None,
    ):
        self._sampling, self._on_pick, self._kv_bits = sampling, on_pick, kv_bits
        self._window = sampling.repetition_context
        self._penalty: Penalty | None = None
        if sampling.repetition_penalty not in (None, 1.0):
            (self._penalty,) = _mlx_lm_samplers().make_logits_processors(
                None, sampling.repetition_penalty, self._window
            )
        key, seed = None, sampling.seed
        if sampling.temperature > 0:
            if seed is None:
                seed = int(mx.random.randint(0, 2**31 - 1).item())  # type: ignore[arg-type]
            key = mx.random.key(seed)
        # The key of the next draw, None if greedy; and the ids that the penalty sees.
        self.state: tuple[mx.array | None, mx.array] = key, mx.array(list(prompt[-self._window :]))

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits (1, vocab) -> the next id (1,), submitted but not awaited."""
        token = self._choose(self._penalised(logits))
        if self._on_pick is not None:
            self._on_pick(logits, token)
        mx.async_eval(token)  # type: ignore[no-untyped-call]
        return token

    def pick_many(self, logits: mx.array) -> tuple[mx.array, mx.array, list[Any]]:
        """Chooses at consecutive positions, each as if the choices before it were taken.

        Logits (n, vocab) -> ids (n,), bools (n,) where rounding cannot matter, `state` after each.
        """
        if self.is_argmax:
            clear = argmax_is_clear(logits, self._kv_bits)
            return mx.argmax(logits, axis=-1), clear, [self.state] * len(logits)
        chosen, are_clear, states = [], [], []
        for row in mx.split(logits, len(logits)):
            scores = self._penalised(row)
            key = self.state[0]
            chosen.append(self._choose(scores))
            if key is None:
                are_clear.append(argmax_is_clear(scores, self._kv_bits))
            else:
                same = self._is_clear_draw(scores, key, chosen[-1])
                are_clear.append(same & mx.isfinite(row.max(axis=-1)))
            states.append(self.state)
        return mx.concatenate(chosen), mx.concatenate(are_clear), states

    @property
    def is_argmax(self) -> bool:
        """True if an id depends on its logits alone."""
        return self._sampling.temperature == 0 and self._penalty is None

    def _penalised(self, logits: mx.array) -> mx.array:
        return logits if self._penalty is None else self._penalty(self.state[1], logits)

    def _choose(self, scores: mx.array) -> mx.array:
        """Scores (1, vocab) -> the id (1,)."""
        key, recent = self.state
        if key is None:
            token = mx.argmax(scores, axis=-1)
        else:
            key, now = mx.random.split(key)
            token = mx.random.categorical(self._sampling.filtered(scores), key=now)
        if self._penalty is not None:
            # Tokens before the window have no effect, so they are not kept as in mlx-lm.
            recent = mx.concatenate([recent, token])[-self._window :]
        self.state = key, recent
        return token

    def _is_clear_draw(self, scores: mx.array, key: mx.array, token: mx.array) -> mx.array:
        """Scores (1, vocab) and the id drawn (1,) -> a bool (1,), as of `argmax_is_clear`.

        MLX draws the first id up to which the probabilities add up to a number from 0 to 1. Scores
        off by e at most move a sum p of probabilities by 2 e p (1 - p) at most. Ids that the
        filters may keep or cut count where they move a sum most. Without a seed any draw will do.
        """
        if self._sampling.seed is None:
            return mx.array([True])
        off_by = mx.abs(scores).max().astype(mx.float32) * _share(scores.dtype, self._kv_bits)
        scores, warmth = scores.astype(mx.float32), self._sampling.temperature
        kept = self._kept(scores, off_by)
        always, maybe = kept.all(axis=0), kept.any(axis=0) & ~kept.all(axis=0)
        shares = mx.softmax(scores[0] / warmth, axis=-1)
        sure, open_ = mx.cumsum(mx.where(always, shares, 0)), mx.cumsum(mx.where(maybe, shares, 0))
        least = sure / (sure[-1] + open_[-1] - open_)
        most = (sure + open_) / (sure[-1] + open_)
        number = mx.random.uniform(shape=(1,), key=mx.random.split(key)[1])
        moved = off_by * (2 / warmth) * number * (1 - number) + SUM_ROUNDING
        first, last = (most < number - moved).sum(), (least < number + moved).sum()
        return (first == token) & (last == token)

    def _kept(self, scores: mx.array, off_by: mx.array) -> mx.array:
        """Bools (3, vocab): what the filters keep of scores (1, vocab), at least and at most."""
        kept = self._sampling.filtered(scores) > -math.inf
        lowest = mx.where(kept, scores, math.inf).min()
        fewer = mx.where(scores > lowest, off_by, -off_by)
        more = mx.where(scores < lowest, off_by, -off_by)
        changed = self._sampling.filtered(mx.concatenate([scores + fewer, scores + more]))
        return mx.concatenate([kept, changed > -math.inf])


def pick_rows(
    pickers: Mapping[int, Picker], logits: mx.array, kv_bits: int | None = None
) -> tuple[mx.array, mx.array, dict[int, list[Any]]]:
    """Chooses for several generations: those of the rows in `pickers`; other rows are not used.

    Logits (rows, n, vocab) -> ids (rows, n), bools (rows, n) as of `Picker.pick_many`, and for each
    picker its `state` before the choices and after each.
    """
    rows, length, vocab = logits.shape
    flat = logits.reshape(-1, vocab)
    clear = argmax_is_clear(flat, kv_bits).reshape(rows, length)
    together = mx.argmax(logits, axis=-1), clear
    states: dict[int, list[Any]] = {}
    apart: dict[int, tuple[mx.array, mx.array]] = {}
    for row, picker in pickers.items():
        states[row] = [picker.state]
        if picker.is_argmax:
            states[row] *= 1 + length
        else:
            chosen, clear, after = picker.pick_many(logits[row])
            apart[row] = chosen, clear
            states[row] += after
    if not apart:
        return *together, states
    chosen, clear = (
        mx.stack([apart[row][part] if row in apart else both[row] for row in range(rows)])
        for part, both in enumerate(together)
    )
    return chosen, clear, states


def argmax_is_clear(logits: mx.array, kv_bits: int | None = None) -> mx.array:
    """Logits (n, vocab) -> bools (n,), True where rounding cannot change the argmax."""
    best = mx.argmax(logits, axis=-1, keepdims=True)
    first = mx.take_along_axis(logits, best, axis=-1)[:, 0].astype(mx.float32)
    lowest = mx.array(-math.inf, dtype=logits.dtype)
    second = mx.put_along_axis(logits, best, lowest, axis=-1).max(axis=-1).astype(mx.float32)
    largest = mx.abs(logits).max(axis=-1).astype(mx.float32)
    return first - second > largest * _share(logits.dtype, kv_bits)


def _share(dtype: mx.Dtype, kv_bits: int | None) -> float:
    return max(
        ROUNDING_SHARE[dtype], 0.0 if kv_bits is None else CODES_SHARE.get(kv_bits, CODES_SHARE[4])
    )


@cache
def _mlx_lm_samplers() -> Any:
    """The module mlx_lm.sample_utils without its package, which imports transformers."""
    package = importlib.util.find_spec("mlx_lm")
    spec = package and PathFinder.find_spec("sample_utils", package.submodule_search_locations)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GREEDY = Sampling()

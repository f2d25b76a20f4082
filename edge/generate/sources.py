"""Sources of tokens: a network with its KV cache, on MLX or on llama.cpp.

`generate(ids, max_tokens, sampling)` returns how many ids of the prompt were taken from the cache,
and an iterator over the ids that follow, stop tokens included. However the iterator ends, the
source knows which ids its cache holds, so the next prompt is computed from the first difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from edge.generate.decode import Tokens, cache_length, generate_tokens
from edge.generate.sampling import Picker, Sampling
from edge.model.kv_cache import make_cache
from edge.model.stablelm import Cache, Model

if TYPE_CHECKING:  # importing numpy would take a large part of a short completion
    from edge.llama_cpp.session import LlamaSession


class PrefixCache:
    """One cache per layer (`layers`) and the ids that they hold (`held`)."""

    def __init__(self, make: Callable[[], list[Cache]]):
        self._make = make
        self.clear()

    def clear(self) -> None:
        """Empties the cache."""
        self.layers = self._make()
        self.held: list[int] = []

    def reuse(self, ids: Sequence[int], fresh: int = 1) -> int:
        """Trims the cache to what it shares with a prompt; returns that length.

        The last `fresh` ids of the prompt do not count: they are to be computed.
        """
        common = common_length(self.held, ids[: max(0, len(ids) - fresh)])
        for layer in self.layers:
            layer.trim(layer.offset - common)
        del self.held[common:]
        return common

    @contextlib.contextmanager
    def feeding(self, ids: Sequence[int]) -> Iterator[list[int]]:
        """Yields the prompt's ids to append the generated ids to; sets `held` at the end."""
        fed = list(ids)
        try:
            yield fed
        finally:
            # A second interrupt can leave layers of different lengths.
            if len({layer.offset for layer in self.layers}) > 1:
                self.clear()
            self.held = fed[: cache_length(self.layers)]


def common_length(a: Sequence[object], b: Sequence[object]) -> int:
    """Length of the common prefix."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


class MlxSource:
    """A network on MLX; `context_tokens` may be less than the model's context."""

    def __init__(self, model: Model, kv_bits: int | None = None, context_tokens: int | None = None):
        self._model = model
        most = model.config.max_position_embeddings
        self.context_tokens = most if context_tokens is None else min(most, context_tokens)
        self.cache = PrefixCache(lambda: make_cache(model, kv_bits))

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> tuple[int, Tokens]:
        """The number of reused ids, and the ids that follow."""
        reused = self.cache.reuse(ids, sampling.looks_back)
        return reused, self._tokens(ids, reused, max_tokens=max_tokens, sampling=sampling)

    def reset(self) -> None:
        """Empties the cache."""
        self.cache.clear()

    def _tokens(self, ids: Sequence[int], reused: int, **options: Any) -> Tokens:
        tokens = generate_tokens(self._model, ids[reused:], cache=self.cache.layers, **options)
        with self.cache.feeding(ids) as fed, contextlib.closing(tokens):
            for token in tokens:
                fed.append(token)
                yield token


class LlamaSource:
    """A GGUF file in a llama.cpp session with an empty cache; the caller closes the session."""

    def __init__(self, session: LlamaSession, context_tokens: int):
        self._session = session
        self.context_tokens = context_tokens
        self.held: list[int] = []

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> tuple[int, Tokens]:
        """The number of reused ids, and the ids that follow, chosen as on MLX."""
        reused = common_length(self.held, ids[: max(0, len(ids) - sampling.looks_back)])
        self._trim(reused)
        # A penalty sees the ids that are computed now, as on MLX.
        pick = Picker(sampling, ids[reused:])
        return reused, self._tokens(ids[reused:], max_tokens, pick)

    def reset(self) -> None:
        """Empties the cache."""
        self._trim(0)

    def _tokens(self, fresh: Sequence[int], max_tokens: int, pick: Picker) -> Tokens:
        for _ in range(max_tokens):
            self._feed(fresh)
            token = int(pick(mx.array(self._session.last_logits())[None]).item())  # type: ignore[arg-type]
            yield token
            fresh = [token]  # computed only if another token is wanted

    def _feed(self, ids: Sequence[int]) -> None:
        try:
            self._session.decode(ids)
        except BaseException:  # after an interrupt llama.cpp's position is unknown
            self._trim(0)
            raise
        self.held += ids

    def _trim(self, length: int) -> None:
        self._session.trim(length)
        del self.held[length:]


TokenSource = MlxSource | LlamaSource

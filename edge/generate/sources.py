"""Sources of tokens: a network with its cache, on MLX or on llama.cpp.

`generate(ids, max_tokens, sampling)` continues a whole prompt. It returns how many of the ids
were not computed again, and the ids that follow, stop tokens included. However that iterator
ends, the source knows which ids its cache holds, so the next prompt pays for what differs.
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

if TYPE_CHECKING:  # numpy would be a large part of a short completion
    from edge.llama_cpp.session import LlamaSession

Continued = tuple[int, Tokens]


class PrefixCache:
    """One cache per layer (`layers`) and the ids whose keys and values they hold (`held`)."""

    def __init__(self, make: Callable[[], list[Cache]]):
        self._make = make
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.layers = self._make()
        self.held: list[int] = []

    def reuse(self, ids: Sequence[int], fresh: int = 1) -> int:
        """Cuts the caches to a prompt's beginning without its `fresh` last ids; its length."""
        common = common_length(self.held, ids[: max(0, len(ids) - fresh)])
        for layer in self.layers:  # as mlx-lm's trim_prompt_cache, without the import
            layer.trim(layer.offset - common)
        del self.held[common:]
        return common

    @contextlib.contextmanager
    def feeding(self, ids: Sequence[int]) -> Iterator[list[int]]:
        """Yields the prompt's ids, to append the generated ones to; sets `held` at the end."""
        fed = list(ids)
        try:
            yield fed
        finally:
            # A second interrupt can leave layers of different length.
            if len({layer.offset for layer in self.layers}) > 1:
                self.clear()
            self.held = fed[: cache_length(self.layers)]


def common_length(a: Sequence[object], b: Sequence[object]) -> int:
    """Number of first items that are the same."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


class MlxSource:
    """Our network on MLX; it uses all positions that the model has, or fewer if so given."""

    def __init__(self, model: Model, kv_bits: int | None = None, context_tokens: int | None = None):
        self._model = model
        most = model.config.max_position_embeddings
        self.context_tokens = most if context_tokens is None else min(most, context_tokens)
        self.cache = PrefixCache(lambda: make_cache(model, kv_bits))

    def generate(self, ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Continued:
        """Reuses what the cache holds of the ids."""
        reused = self.cache.reuse(ids, sampling.looks_back)
        return reused, self._tokens(ids, reused, max_tokens=max_tokens, sampling=sampling)

    def reset(self) -> None:
        """Forgets the prompts so far."""
        self.cache.clear()

    def _tokens(self, ids: Sequence[int], reused: int, **options: Any) -> Tokens:
        tokens = generate_tokens(self._model, ids[reused:], cache=self.cache.layers, **options)
        with self.cache.feeding(ids) as fed, contextlib.closing(tokens):
            for token in tokens:
                fed.append(token)
                yield token


class LlamaSource:
    """A GGUF file in a session of llama.cpp, whose cache is empty; the caller closes it."""

    def __init__(self, session: LlamaSession, context_tokens: int):
        self._session = session
        self.context_tokens = context_tokens
        self.held: list[int] = []

    def generate(self, ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Continued:
        """See the module; logits are chosen from as on MLX, in float32."""
        reused = common_length(self.held, ids[: max(0, len(ids) - sampling.looks_back)])
        self._keep(reused)
        # A penalty sees what an MLX generation sees: the ids that are computed now.
        pick = Picker(sampling, ids[reused:])
        return reused, self._tokens(ids[reused:], max_tokens, pick)

    def reset(self) -> None:
        """Forgets the prompts so far."""
        self._keep(0)

    def _tokens(self, fresh: Sequence[int], max_tokens: int, pick: Picker) -> Tokens:
        for _ in range(max_tokens):
            self._feed(fresh)
            token = int(pick(mx.array(self._session.last_logits())[None]).item())  # type: ignore[arg-type]
            yield token
            fresh = [token]  # fed when the next is asked for, so never after the last

    def _feed(self, ids: Sequence[int]) -> None:
        try:
            self._session.decode(ids)
        except BaseException:  # an interrupt: how far llama.cpp came is unknown
            self._keep(0)
            raise
        self.held += ids

    def _keep(self, length: int) -> None:
        """Forgets all but the first ids."""
        self._session.trim(length)
        del self.held[length:]


TokenSource = MlxSource | LlamaSource

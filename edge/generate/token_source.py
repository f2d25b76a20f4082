"""Where tokens come from: what continues a prompt and keeps what it computed for the next one.

The prompt, the detokenizer and the stop rules of a middle know nothing of the network below
them; this is all that they ask of it. The source of llama.cpp is in `edge.generate.llama_source`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Protocol

from edge.generate.decode import generate_tokens
from edge.generate.prefix_cache import PrefixCache
from edge.generate.sampling import Sampling
from edge.model.kv_cache import make_cache

if TYPE_CHECKING:
    from edge.model.stablelm import Model


class TokenSource(Protocol):
    """A network with its cache; one prompt at a time."""

    @property
    def context_tokens(self) -> int:
        """Positions that a prompt and what follows it may take together."""

    def follow(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> tuple[int, Generator[int, None, None]]:
        """Continue a prompt.

        Args:
            ids: the whole prompt, at least one.
            max_tokens: at most so many are generated; the caller sees to the context.
            sampling: how they are chosen.

        Returns:
            How many of the ids were not computed again, and the ids that follow, stop tokens
            among them. Whatever ends that iterator, the source then knows what it holds.
        """

    def forget(self) -> None:
        """Keep nothing of the prompts so far."""


class MlxSource:
    """Our network on MLX.

    Args:
        model: the network.
        kv_bits: 8 or 4 to keep keys and values quantised; None as they are computed.
        context_tokens: positions to use; None for all that the model has.
    """

    def __init__(self, model: Model, kv_bits: int | None = None, context_tokens: int | None = None):
        self._model = model
        self._limit = context_tokens
        self.cache = PrefixCache(lambda: make_cache(model, kv_bits))

    @property
    def context_tokens(self) -> int:
        """The model's, or fewer if so wished."""
        most = self._model.config.max_position_embeddings
        return most if self._limit is None else min(most, self._limit)

    def follow(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> tuple[int, Generator[int, None, None]]:
        """As `TokenSource` says."""
        reused = self.cache.reuse(ids, sampling.looks_back)
        tokens = generate_tokens(
            self._model,
            ids[reused:],
            cache=self.cache.layers,
            sampling=sampling,
            max_tokens=max_tokens,
        )
        return reused, self._fed(ids, tokens)

    def forget(self) -> None:
        """As `TokenSource` says."""
        self.cache.clear()

    def _fed(
        self, ids: Sequence[int], tokens: Generator[int, None, None]
    ) -> Generator[int, None, None]:
        with self.cache.feeding(ids) as fed, contextlib.closing(tokens):
            for token in tokens:
                fed.append(token)
                yield token

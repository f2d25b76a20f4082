"""Sources of tokens: a network with its cache, on MLX or on llama.cpp.

`generate(ids, max_tokens, sampling)` continues a whole prompt. It returns how many of the ids
were not computed again, and the ids that follow, stop tokens included. However that iterator
ends, the source knows which ids its cache holds, so the next prompt pays for what differs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from edge.generate.decode import generate_tokens
from edge.generate.prefix_cache import PrefixCache, common_length
from edge.generate.sampling import Picker, Sampling
from edge.model.kv_cache import make_cache

if TYPE_CHECKING:  # numpy would be a large part of a short completion
    from edge.llama_cpp.session import LlamaSession
    from edge.model.stablelm import Model


class MlxSource:
    """Our network on MLX.

    Args:
        model: the network.
        kv_bits: 8 or 4 to keep keys and values quantised; None as they are computed.
        context_tokens: positions to use; None for all that the model has.
    """

    def __init__(self, model: Model, kv_bits: int | None = None, context_tokens: int | None = None):
        self._model = model
        most = model.config.max_position_embeddings
        self.context_tokens = most if context_tokens is None else min(most, context_tokens)
        self.cache = PrefixCache(lambda: make_cache(model, kv_bits))

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> tuple[int, Generator[int, None, None]]:
        """See the module."""
        reused = self.cache.reuse(ids, sampling.looks_back)
        tokens = generate_tokens(
            self._model,
            ids[reused:],
            cache=self.cache.layers,
            sampling=sampling,
            max_tokens=max_tokens,
        )
        return reused, self._fed(ids, tokens)

    def reset(self) -> None:
        """Forgets the prompts so far."""
        self.cache.clear()

    def _fed(
        self, ids: Sequence[int], tokens: Generator[int, None, None]
    ) -> Generator[int, None, None]:
        with self.cache.feeding(ids) as fed, contextlib.closing(tokens):
            for token in tokens:
                fed.append(token)
                yield token


class LlamaSource:
    """A GGUF file in a session of llama.cpp.

    Args:
        session: open, its cache empty; the caller closes it.
        context_tokens: positions to use, at most those that the session was opened with.
    """

    def __init__(self, session: LlamaSession, context_tokens: int):
        self._session = session
        self.context_tokens = context_tokens
        self.held: list[int] = []

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> tuple[int, Generator[int, None, None]]:
        """See the module; logits are chosen from as on MLX, in float32."""
        reused = common_length(self.held, ids[: max(0, len(ids) - sampling.looks_back)])
        self._keep(reused)
        # A penalty sees what an MLX generation sees: the ids that are computed now.
        pick = Picker(sampling, ids[reused:])
        return reused, self._tokens(ids[reused:], max_tokens, pick)

    def reset(self) -> None:
        """Forgets the prompts so far."""
        self._keep(0)

    def _tokens(
        self, fresh: Sequence[int], max_tokens: int, pick: Picker
    ) -> Generator[int, None, None]:
        for _ in range(max_tokens):
            self._feed(fresh)
            token = int(pick(mx.array(self._session.last_logits())[None]).item())  # type: ignore[arg-type]
            yield token
            fresh = [token]  # fed when the next is asked for: after the last one nobody asks

    def _feed(self, ids: Sequence[int]) -> None:
        try:
            self._session.decode(ids)
        except BaseException:  # an interrupt: nobody knows how far llama.cpp came
            self._keep(0)
            raise
        self.held += ids

    def _keep(self, length: int) -> None:
        """Forgets all but the first ids."""
        self._session.trim(length)
        del self.held[length:]


TokenSource = MlxSource | LlamaSource

"""llama.cpp as a source of tokens: the same prompts and the same choice as on MLX."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import mlx.core as mx

from edge.generate.prefix_cache import common_length
from edge.generate.sampling import Picker, Sampling
from edge.llama_cpp.session import LlamaSession


class LlamaSource:
    """A GGUF file in a session of llama.cpp.

    Args:
        session: open, its cache empty; the caller closes it.
        context_tokens: positions to use, at most those that the session was opened with.
    """

    def __init__(self, session: LlamaSession, context_tokens: int):
        self._session = session
        self._context_tokens = context_tokens
        self._held: list[int] = []

    @property
    def context_tokens(self) -> int:
        """As given."""
        return self._context_tokens

    @property
    def held(self) -> tuple[int, ...]:
        """The ids whose keys and values llama.cpp has."""
        return tuple(self._held)

    def follow(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> tuple[int, Generator[int, None, None]]:
        """As `TokenSource` says; logits are chosen from as on MLX, in float32."""
        reused = common_length(self._held, ids[: max(0, len(ids) - sampling.looks_back)])
        self._keep(reused)
        # A penalty sees what an MLX generation sees: the ids that are computed now.
        pick = Picker(sampling, ids[reused:])
        return reused, self._tokens(ids[reused:], max_tokens, pick)

    def forget(self) -> None:
        """As `TokenSource` says."""
        self._keep(0)

    def _tokens(
        self, fresh: Sequence[int], max_tokens: int, pick: Picker
    ) -> Generator[int, None, None]:
        for _ in range(max_tokens):
            self._feed(fresh)
            token = int(pick(mx.array(self._session.last_logits())[None]).item())  # type: ignore[arg-type]
            yield token
            # Fed when the next is asked for: after the last one nobody asks.
            fresh = [token]

    def _feed(self, ids: Sequence[int]) -> None:
        try:
            self._session.decode(ids)
        except BaseException:  # an interrupt: nobody knows how far llama.cpp came
            self._keep(0)
            raise
        self._held += ids

    def _keep(self, length: int) -> None:
        """Forget all but the first ids."""
        self._session.trim(length)
        del self._held[length:]

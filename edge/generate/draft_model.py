"""A smaller network proposes how the text goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from edge.errors import EdgeError
from edge.generate.speculate import MOST_PROPOSED, Pace, level
from edge.model.kv_cache import make_cache

if TYPE_CHECKING:
    from edge.model.stablelm import Model

# Ids fed at a time where many are missing: bounds the memory of a long prompt.
FEED_TOKENS = 2048


class DraftModel:
    """Proposes what a second network thinks most probable. A `Drafter`.

    Args:
        model: a network with the vocabulary of the one that it helps.
        pace: how many proposals are made; by default what pays.
    """

    free = False

    def __init__(self, model: Model, pace: Pace | None = None):
        self.pace = pace or Pace()
        self._model = model
        self._cache = make_cache(model)
        self._ids: list[int] = []
        # What the cache was given; agrees with the ids up to `_agreed` at least.
        self._fed: list[int] = []
        self._agreed = 0

    def begin(self, model: Model, ids: Sequence[int]) -> None:
        """A generation by a model begins after these ids.

        Raises:
            EdgeError: the vocabularies differ in size.
        """
        ours, theirs = self._model.config.vocab_size, model.config.vocab_size
        if ours != theirs:
            raise EdgeError(
                f"the draft model has a vocabulary of {ours} tokens and the model one of {theirs}; "
                "choose a draft model of the same family."
            )
        self.pace.begin()
        self._ids, self._agreed = list(ids), 0

    def extend(self, ids: Sequence[int]) -> None:
        """The text has gone on."""
        self._ids += ids

    def kind(self) -> int | None:
        """All proposals are of one kind; there are none beyond the network's own context."""
        left = self._model.config.max_position_embeddings - len(self._ids)
        return 0 if left > MOST_PROPOSED else None

    def propose(self, count: int) -> list[int]:
        """So many ids, each the most probable after those before."""
        self._take_back()
        token = self._next(self._feed())
        tokens = [token]
        for _ in range(count - 1):
            token = self._next(self._model.model(token[None], self._cache))
            tokens.append(token)
        proposed: list[int] = mx.concatenate(tokens).tolist()  # type: ignore[assignment]
        self._agreed = len(self._ids)
        self._fed = [*self._ids, *proposed[:-1]]
        return proposed

    def _take_back(self) -> None:
        """Trim the cache to what it shares with the text, whose last id is always fed again."""
        same = self._agreed
        most = min(len(self._fed), len(self._ids) - 1, *(layer.offset for layer in self._cache))
        while same < most and self._fed[same] == self._ids[same]:
            same += 1
        self._agreed = min(same, most)
        level(self._cache, self._agreed)

    def _feed(self) -> mx.array:
        """Give the cache what is missing; the hidden state of the last id (1, 1, hidden)."""
        missing = self._ids[self._agreed :]
        while True:
            part, missing = missing[:FEED_TOKENS], missing[FEED_TOKENS:]
            hidden = self._model.model(mx.array([part]), self._cache)[:, -1:]
            if not missing:
                return hidden
            mx.eval(hidden)

    def _next(self, hidden: mx.array) -> mx.array:
        """Hidden state (1, 1, hidden) -> the most probable id (1,)."""
        return mx.argmax(self._model.head(hidden)[:, -1], axis=-1)

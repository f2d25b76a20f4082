"""Keys and values of a prompt, kept for the next one that begins in the same way.

cache = PrefixCache(lambda: make_cache(model))
reused = cache.reuse(ids)
with cache.feeding(ids) as fed:
    for token in generate_tokens(model, ids[reused:], cache=cache.layers):
        fed.append(token)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from edge.generate.decode import cache_length

if TYPE_CHECKING:
    from edge.model.stablelm import Cache


class PrefixCache:
    """One cache per layer and the ids whose keys and values they hold.

    Args:
        make: makes empty caches, one per layer, that can be trimmed.

    Attributes:
        layers: the caches; other ones after `clear`.
        held: the ids whose keys and values are there.
    """

    def __init__(self, make: Callable[[], list[Cache]]):
        self._make = make
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.layers = self._make()
        self.held: list[int] = []

    def reuse(self, ids: Sequence[int], fresh: int = 1) -> int:
        """Cuts the caches to what they have in common with a prompt; how many ids that are.

        Args:
            ids: the whole prompt.
            fresh: how many of its last ids shall be computed in any case. At least one: its
                logits are the first answer's.
        """
        common = common_length(self.held, ids[: max(0, len(ids) - fresh)])
        for layer in self.layers:  # as mlx-lm's trim_prompt_cache, without the import
            layer.trim(layer.offset - common)
        del self.held[common:]
        return common

    @contextlib.contextmanager
    def feeding(self, ids: Sequence[int]) -> Iterator[list[int]]:
        """While a prompt is computed and continued; whatever ends that, `held` is right.

        Yields:
            The prompt's ids; append those that are generated.
        """
        fed = list(ids)
        try:
            yield fed
        finally:
            # A second interrupt can leave layers of different length.
            if len({layer.offset for layer in self.layers}) > 1:
                self.clear()
            self.held = fed[: cache_length(self.layers)]


def common_length(a: Sequence[object], b: Sequence[object]) -> int:
    """How many first items are the same."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))

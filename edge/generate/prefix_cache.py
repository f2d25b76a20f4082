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
    """

    def __init__(self, make: Callable[[], list[Cache]]):
        self._make = make
        self._layers = make()
        self._held: list[int] = []

    @property
    def layers(self) -> list[Cache]:
        """The caches; other ones after `clear`."""
        return self._layers

    @property
    def held(self) -> tuple[int, ...]:
        """The ids whose keys and values are there."""
        return tuple(self._held)

    def reuse(self, ids: Sequence[int], fresh: int = 1) -> int:
        """Cut the caches to what they have in common with a prompt; how many ids that are.

        Args:
            ids: the whole prompt.
            fresh: how many of its last ids shall be computed in any case. At least one: its
                logits are the first answer's.
        """
        common = common_length(self._held, ids[: max(0, len(ids) - fresh)])
        for layer in self._layers:  # as mlx-lm's trim_prompt_cache, without the import
            layer.trim(layer.offset - common)
        self._held = self._held[:common]
        return common

    def clear(self) -> None:
        """Forget everything."""
        self._layers, self._held = self._make(), []

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
            if len({layer.offset for layer in self._layers}) > 1:
                self.clear()
            self._held = fed[: cache_length(self._layers)]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first items are the same."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))

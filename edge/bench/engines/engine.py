"""The protocol that makes engines interchangeable."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from edge.profile.profile import EngineFacts

MLX, MLX_LM, LLAMA_CPP = "mlx", "mlx-lm", "llama.cpp"
Logits = np.ndarray[Any, np.dtype[np.float32]]


class Engine(Protocol):
    """One loaded artefact with an empty cache.

    Every call returns when the device has finished. Nothing is sampled or detokenised, so
    that all engines do the same work.
    """

    def prefill(self, ids: Sequence[int]) -> None:
        """Extend the cache by ids at once and compute the last one's logits."""

    def decode(self, ids: Sequence[int], stamp: Callable[[], None]) -> None:
        """Extend the cache one id at a time; call stamp when each one's logits are there."""

    def trim(self, length: int) -> None:
        """Forget every position from `length` on."""

    def last_logits(self) -> Logits:
        """The last logits computed, (vocab,) in float32."""

    def facts(self) -> EngineFacts:
        """The way it runs here; `remarks` are sentences that a reader needs to judge the figures.

        `weight_bytes_per_token` are those as they lie in memory: all but the embedding table, of
        which a step reads one row. `kv_bytes_per_position` is the cache's size per token.
        """

    def peak_device_bytes(self) -> int:
        """The most memory the engine has held on the device, 0 where it cannot tell."""

    def close(self) -> None:
        """Free what it holds. On Metal llama.cpp aborts the process at its end otherwise."""

"""The protocol that all engines follow."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from edge.profile.profile import EngineFacts

MLX, MLX_LM, LLAMA_CPP = "mlx", "mlx-lm", "llama.cpp"
# Not an engine of ours: whatever answers behind an HTTP route.
SERVER = "server"
Logits = np.ndarray[Any, np.dtype[np.float32]]
# Ids of one sequence; of a batch a list for each of its sequences.
Ids = Sequence[Any]
Rows = Sequence[Sequence[int]]


class Engine(Protocol):
    """One loaded artefact with an empty cache, or a batch: several, over the same weights.

    Every call returns when the device has finished. Nothing is sampled or detokenised, so
    that all engines do the same work.
    """

    def prefill(self, ids: Ids) -> None:
        """Extends the cache by all ids at once and computes the logits of the last one."""

    def decode(self, ids: Ids, stamp: Callable[[], None]) -> None:
        """Extends the cache by one id at a time; calls `stamp` when its logits are computed.

        Of a batch every sequence is extended by an id before a stamp.
        """

    def trim(self, length: int) -> None:
        """Removes every position from `length` on."""

    def last_logits(self) -> Logits:
        """The last logits that were computed, (vocab,) in float32; of a batch (rows, vocab)."""

    def least_rows(self) -> int:
        """Length of the shortest prompt by which the logits are checked, if the context allows."""
        return 0

    def facts(self) -> EngineFacts:
        """How the engine runs here; bytes are those in memory."""

    def peak_device_bytes(self) -> int:
        """The most memory held on the device; 0 where the engine does not count it."""
        return 0

    def alone(self) -> "Engine":
        """The engine of one sequence over the same weights; those of a batch are emptied."""
        return self

    def close(self) -> None:
        """Frees memory explicitly where the library needs that."""
        return

"""The protocol that makes engines interchangeable in a measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Logits = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class EngineFacts:
    """How an engine runs the artefact here.

    `weight_bytes_per_token` is what one decode step reads of the weights as they lie in
    memory: all but the embedding table, of which it reads one row.
    `kv_bytes_per_position` is the cache's size per token of context. `remarks` are sentences
    that a reader needs to judge the figures. `build` says which llama.cpp it is and with what
    flags, `gpu_layers` how many of its layers are on a GPU: -1 for all.
    """

    device: str
    compute_dtype: str
    kv_dtype: str
    threads: int | None
    weight_bytes_per_token: int
    kv_bytes_per_position: int
    remarks: tuple[str, ...] = ()
    build: str | None = None
    gpu_layers: int | None = None


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

    def logits_are_finite(self) -> bool:
        """Whether the last logits computed are numbers: a cheap check of the weights."""

    def last_logits(self) -> Logits:
        """The last logits computed, (vocab,) in float32: what the correctness gate compares."""

    def facts(self) -> EngineFacts:
        """How it runs here."""

    def peak_device_bytes(self) -> int:
        """The most memory the engine has held on the device, 0 where it cannot tell."""

    def close(self) -> None:
        """Free what it holds. On Metal llama.cpp aborts the process at its end otherwise."""

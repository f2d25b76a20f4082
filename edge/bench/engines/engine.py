"""The protocol that makes engines interchangeable, and how one is opened by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge.profile.profile import EngineFacts

if TYPE_CHECKING:
    from edge.model.memory import Need

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


def open_engine(
    name: str, path: Path, context_tokens: int, threads: int, kv_bits: int | None = None
) -> Engine:
    """Load an artefact; imports that engine's library alone, because its memory is measured.

    `context_tokens` and `threads` are llama.cpp's, whose cache does not grow; `kv_bits` are of our
    own network's cache.

    Raises:
        EdgeError: the artefact cannot be loaded.
    """
    if name == LLAMA_CPP:
        from edge.bench.engines.llama_cpp import LlamaCppEngine

        return LlamaCppEngine(path, context_tokens, threads)
    from edge.bench.engines.mlx import open_mlx_lm, open_ours

    return open_mlx_lm(path) if name == MLX_LM else open_ours(path, kv_bits)


def check_memory(
    name: str, path: Path, context_tokens: int, kv_bits: int | None = None
) -> tuple[Need | None, str | None]:
    """Memory that an engine needs, and a warning where that is a tight fit.

    None for llama.cpp, which maps its file and reports a lack of memory itself.

    Raises:
        EdgeError: it does not fit, or its files cannot be read.
    """
    if name == LLAMA_CPP:
        return None, None
    from edge.model.load import compute_dtype, read_directory
    from edge.model.memory import check_fits

    _, config = read_directory(path)
    own_bits = kv_bits if name == MLX else None
    return check_fits(path, config, compute_dtype(), context_tokens, own_bits)

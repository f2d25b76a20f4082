"""Engines by name, imported only when one is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge.bench.engines.engine import Engine

if TYPE_CHECKING:
    from edge.model.memory import Fit

MLX_LM = "mlx-lm"


def open_engine(
    name: str, path: Path, context_tokens: int, threads: int, kv_bits: int | None = None
) -> Engine:
    """Load an artefact.

    Args:
        name: "mlx", "mlx-lm" or "llama.cpp".
        path: the artefact.
        context_tokens: positions that the cache must be able to hold, where it does not grow.
        threads: CPU threads, for the engines that take a number.
        kv_bits: of our own network's cache; None as computed.

    Raises:
        EdgeError: the artefact cannot be loaded.
    """
    if name == "llama.cpp":
        from edge.bench.engines.llama_cpp import open_llama_cpp

        return open_llama_cpp(path, context_tokens, threads)
    from edge.bench.engines.mlx import open_mlx_lm, open_ours

    return open_mlx_lm(path) if name == MLX_LM else open_ours(path, kv_bits)


def check_memory(
    name: str, path: Path, context_tokens: int, kv_bits: int | None = None
) -> Fit | None:
    """Whether an engine can load the artefact here; None where it cannot be told before.

    llama.cpp maps its file, and says itself when it finds no room for the cache.

    Raises:
        EdgeError: it does not fit, or its files cannot be read.
    """
    if name == "llama.cpp":
        return None
    from edge.model.load import compute_dtype, read_directory
    from edge.model.memory import check_fits

    _, config = read_directory(path)
    own_bits = kv_bits if name == "mlx" else None
    return check_fits(path, config, compute_dtype(), context_tokens, own_bits)

"""Engines by name, imported only when one is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge.bench.engines.engine import Engine

if TYPE_CHECKING:
    from edge.model.memory import Fit

# mlx-lm twice: in our compute dtype, which compares the code, and in that of the files, which
# is what its own commands run.
MLX_LM, MLX_LM_AS_LOADED = "mlx-lm", "mlx-lm-as-loaded"
PEERS = (MLX_LM, MLX_LM_AS_LOADED)
ENGINES = ("mlx", MLX_LM, MLX_LM_AS_LOADED, "llama.cpp")


def open_engine(
    name: str,
    path: Path,
    context_tokens: int,
    threads: int,
    fuse: bool = True,
    pad: bool | None = None,
    kv_bits: int | None = None,
) -> Engine:
    """Load an artefact.

    Args:
        name: one of ENGINES.
        path: the artefact.
        context_tokens: positions that the cache must be able to hold.
        threads: CPU threads, for the engines that take a number.
        fuse: for our own network, as `edge.model.variant.Variant` has it.
        pad: likewise.
        kv_bits: of our own network's cache; None as computed.

    Raises:
        EdgeError: the artefact cannot be loaded.
    """
    if name == "llama.cpp":
        from edge.bench.engines.llama_cpp import open_llama_cpp

        return open_llama_cpp(path, context_tokens, threads)
    from edge.bench.engines.mlx import open_mlx_lm, open_ours

    if name in PEERS:
        return open_mlx_lm(path, context_tokens, threads, as_loaded=name == MLX_LM_AS_LOADED)
    from edge.model.variant import Variant

    return open_ours(path, context_tokens, threads, Variant(fuse, pad), kv_bits)


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
    from edge.model.load import compute_dtype
    from edge.model.memory import check_fits

    dtype = None if name == MLX_LM_AS_LOADED else compute_dtype()
    return check_fits(path, dtype, context_tokens, kv_bits if name == "mlx" else None)

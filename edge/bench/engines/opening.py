"""Open an engine; apart from what engines have in common, so that imports have no circle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge.bench.engines.engine import LLAMA_CPP, MLX, MLX_LM, Engine

if TYPE_CHECKING:
    from edge.model.memory import Need


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

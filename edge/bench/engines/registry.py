"""Engines by name, imported only when one is opened."""

from __future__ import annotations

from pathlib import Path

from edge.bench.engines.engine import Engine

ENGINES = ("mlx", "mlx-lm", "llama.cpp")


def open_engine(
    name: str,
    path: Path,
    context_tokens: int,
    threads: int,
    fuse: bool = True,
    pad: bool | None = None,
) -> Engine:
    """Load an artefact.

    Args:
        name: one of ENGINES.
        path: the artefact.
        context_tokens: positions that the cache must be able to hold.
        threads: CPU threads, for the engines that take a number.
        fuse: for our own network, as `edge.model.variant.Variant` has it.
        pad: likewise.

    Raises:
        EdgeError: the artefact cannot be loaded.
    """
    if name == "llama.cpp":
        from edge.bench.engines.llama_cpp import open_llama_cpp

        return open_llama_cpp(path, context_tokens, threads)
    from edge.bench.engines.mlx import open_mlx_lm, open_ours

    if name == "mlx-lm":
        return open_mlx_lm(path, context_tokens, threads)
    from edge.model.variant import Variant

    return open_ours(path, context_tokens, threads, Variant(fuse, pad))

"""How large an artefact is, and how large it will be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge.checkpoints.artefacts.gguf import gguf_plan
from edge.checkpoints.artefacts.gguf_plan import plan
from edge.checkpoints.artefacts.layout import layout
from edge.checkpoints.artefacts.recipes import Recipe
from edge.checkpoints.checkpoint import Checkpoint
from edge.checkpoints.sources.companions import INDEX
from edge.gguf_file import read_tensors
from edge.json_file import read_json_object


def file_bytes(path: Path) -> int:
    """Bytes on disk of a file, or of every file in a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())


def tensor_bytes(path: Path) -> int:
    """Bytes of the weights alone, without headers, tokenizer and config.

    Raises:
        EdgeError: the artefact is damaged.
    """
    if path.is_dir():
        index = read_json_object(path / INDEX)
        return int(index["metadata"]["total_size"])
    return sum(tensor.data_bytes for tensor in read_tensors(path))


def bits_per_weight(path: Path, parameters: int) -> float:
    """Bits that one weight takes on average, scales and biases included."""
    return 8 * tensor_bytes(path) / parameters


def planned_bytes(checkpoint: Checkpoint, wanted: Sequence[tuple[Recipe, bool]]) -> list[int]:
    """Bytes of the weights of artefacts that are yet to be made, to the byte.

    Args:
        checkpoint: what they will be made of.
        wanted: recipes, and whether each keeps the source's own quantised values.

    Raises:
        EdgeError: llama.cpp cannot tell.
    """
    file_types = [r.file_type for r, _ in wanted if not r.is_mlx and not r.is_float]
    quantised = _quantised_bytes(checkpoint, [t for t in file_types if t is not None])
    return [
        _mlx_bytes(checkpoint, recipe, exact)
        if recipe.is_mlx
        else _float_gguf_bytes(checkpoint, recipe)
        if recipe.is_float
        else quantised[recipe.file_type or 0]
        for recipe, exact in wanted
    ]


def _mlx_bytes(checkpoint: Checkpoint, recipe: Recipe, exact: bool) -> int:
    forms = layout(checkpoint, recipe, exact)
    return sum(planned.data_bytes for form in forms for planned in form.planned())


def _float_gguf_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    return sum(tensor.data_bytes for tensor in gguf_plan(checkpoint.config, recipe.dtype))


def _quantised_bytes(checkpoint: Checkpoint, file_types: Sequence[int]) -> dict[int, int]:
    if not file_types:
        return {}
    shapes = {t.name: t.shape for t in gguf_plan(checkpoint.config, "F16")}
    plans = plan(checkpoint.config, shapes, file_types)
    return {kind: sum(tensor.data_bytes for tensor in tensors) for kind, tensors in plans.items()}

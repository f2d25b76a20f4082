"""How far an artefact's tensors are from those of the checkpoint it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.convert.checkpoint import Checkpoint
from edge.convert.sources.directory import open_directory
from edge.convert.sources.gguf import open_gguf
from edge.convert.sources.weights import Array, Opened, Packed, Shape, Weights
from edge.model.tensors import expected_shapes

# Rows looked at: some places spread over each tensor, a few rows at each. Quantisation
# errors hardly differ between the rows of a matrix, and reading all would take minutes.
PLACES = 8
ROWS_PER_PLACE = 16


@dataclass(frozen=True)
class TensorError:
    """A tensor's distance from the checkpoint's over the rows looked at.

    `relative` is the root mean square of the difference over that of the weights;
    `largest` the largest difference.
    """

    name: str
    relative: float
    largest: float


def open_artefact(path: Path) -> Opened:
    """An artefact as a source: its config, and its tensors under Hugging Face names.

    Raises:
        EdgeError: it is damaged.
    """
    return open_directory(path) if path.is_dir() else open_gguf(path)


def tensor_errors(weights: Weights, checkpoint: Checkpoint) -> Iterator[TensorError]:
    """Every tensor's error, in file order.

    Args:
        weights: the artefact's.
        checkpoint: what it was made of.
    """
    for name, shape in expected_shapes(checkpoint.config).items():
        yield tensor_error(name, shape, weights, checkpoint)


def tensor_error(name: str, shape: Shape, weights: Weights, checkpoint: Checkpoint) -> TensorError:
    """One tensor's error, NaN or infinite where a value is."""
    pairs = [
        (checkpoint.weights.read(name, *rows), weights.read(name, *rows))
        for rows in _sampled(shape[0])
    ]
    with np.errstate(invalid="ignore", over="ignore"):
        original, stored = (
            np.concatenate(part).astype(np.float64) for part in zip(*pairs, strict=True)
        )
        return _error(name, original, stored)


def same_values(name: str, weights: Weights, checkpoint: Checkpoint) -> bool:
    """Whether a quantised matrix is bit for bit the source's own."""
    if weights.packing(name) != checkpoint.weights.packing(name):
        return False
    ours, theirs = weights.read_packed(name), checkpoint.weights.read_packed(name)
    parts = (
        (ours.codes, theirs.codes),
        (ours.scales, theirs.scales),
        (ours.biases, theirs.biases),
        (_order(ours), _order(theirs)),
    )
    return all(np.array_equal(a, b) for a, b in parts)


def describe_loss(path: Path, checkpoint: Checkpoint) -> str:
    """A sentence on what rounding an already quantised source again has cost."""
    errors = list(tensor_errors(open_artefact(path).weights, checkpoint))
    worst = max(errors, key=lambda error: error.relative)
    typical = float(np.median([error.relative for error in errors]))
    return (
        f"the source is quantised itself and was rounded again: relative error "
        f"{typical:.2g} in the median tensor, {worst.relative:.2g} in the worst ({worst.name})."
    )


def _order(packed: Packed) -> Array:
    """Where each column's input lies."""
    if packed.input_order is not None:
        return packed.input_order
    return np.arange(packed.scales.shape[1] * packed.packing.group_size)


def _sampled(rows: int) -> list[tuple[int, int]]:
    """Disjoint runs of rows, from the first to the last."""
    if rows <= PLACES * ROWS_PER_PLACE:
        return [(0, rows)]
    starts = [(rows - ROWS_PER_PLACE) * i // (PLACES - 1) for i in range(PLACES)]
    return [(start, start + ROWS_PER_PLACE) for start in starts]


def _error(name: str, original: Array, stored: Array) -> TensorError:
    difference = stored - original
    scale = float(np.sqrt(np.mean(np.square(original, dtype=np.float64))))
    error = float(np.sqrt(np.mean(np.square(difference))))
    relative = error / scale if scale else float(error > 0)
    return TensorError(name, relative, float(np.max(np.abs(difference))))

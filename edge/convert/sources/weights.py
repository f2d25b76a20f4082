"""Named tensors of a source, read in blocks of rows.

Names are Hugging Face's whatever the file format. A quantised source offers a matrix dequantised
by `read`, and exactly as it is by `read_packed`, in the terms of MLX's affine quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edge.formats.safetensors import Array as Array
from edge.formats.safetensors import Shape as Shape
from edge.formats.safetensors import StoredTensor
from edge.model.config import ModelConfig


@dataclass(frozen=True)
class Packing:
    """How MLX would store a quantised matrix exactly."""

    bits: int
    group_size: int
    permuted: bool = False  # its columns are in another order than the network's inputs


@dataclass(frozen=True)
class Packed:
    """A quantised matrix (out, in) as MLX stores it.

    W[o, input_order[i]] = scales[o, i // group_size] * code[o, i] + biases[o, i // group_size]
    """

    packing: Packing
    codes: Array  # uint32 (out, in * bits / 32), a stream of `bits`-wide codes, lowest bits first
    scales: Array  # float16 (out, in / group_size)
    biases: Array  # the same
    input_order: Array | None = None  # int32 (in,), None for the identity
    # By how much a bias differs at most from the source's exact one, in units of its scale.
    bias_error_steps: float = 0.0


class Weights:
    """The tensors of one source; here, of one that is not quantised."""

    shapes: Mapping[str, Shape]  # dequantised, by Hugging Face name
    files: tuple[Path, ...] = ()  # none for generated weights
    quantised: bool = False  # rounded to a few bits before

    @cached_property
    def unpackable(self) -> Mapping[str, str]:
        """Why a quantised tensor has no packing, by name."""
        return {}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows start to stop of a tensor as float16 or float32, never more precise than stored."""
        raise NotImplementedError

    def packing(self, name: str) -> Packing | None:
        """How MLX can store the tensor without rounding it again; None if it cannot."""
        return None

    def read_packed(self, name: str) -> Packed:
        """A tensor that has a packing, in that form."""
        raise ValueError(f"{name} has no packing")


def files_of(tensors: Mapping[str, StoredTensor]) -> tuple[Path, ...]:
    """The files that hold some tensors, in order."""
    return tuple(dict.fromkeys(tensor.path for tensor in tensors.values()))


@dataclass(frozen=True)
class Opened:
    """A source that was read but not yet compared with its config."""

    config: ModelConfig
    weights: Weights
    tokenizer_files: Mapping[str, bytes]  # and generation settings, by file name
    warnings: tuple[str, ...] = ()  # sentences to read before trusting the result
    title: str | None = None  # the model's name as the source gives it
    # False for a GGUF file that leaves it out, so that llama.cpp takes 10000. Its own converter
    # does so, which is wrong for Stable Code (1000000).
    gives_rope_base: bool = True

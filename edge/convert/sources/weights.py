"""Tensors of a source by Hugging Face name, read in blocks of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edge.formats.safetensors import Array as Array
from edge.formats.safetensors import Shape as Shape
from edge.model.config import ModelConfig


@dataclass(frozen=True)
class Packing:
    """How MLX stores a quantised matrix exactly."""

    bits: int
    group_size: int
    permuted: bool = False  # columns are in another order than the network's inputs


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
    bias_error_steps: float = 0.0  # largest error of a bias, in units of its scale


class Weights:
    """The tensors of one source; this base class is for sources that are not quantised."""

    shapes: Mapping[str, Shape]  # dequantised, by name
    files: tuple[Path, ...] = ()  # none for synthetic weights
    quantised: bool = False

    @cached_property
    def unpackable(self) -> Mapping[str, str]:
        """Reasons why quantised tensors have no packing, by name."""
        return {}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows start to stop, dequantised, as float16 or float32, no wider than stored."""
        raise NotImplementedError

    def packing(self, name: str) -> Packing | None:
        """How MLX stores the tensor without rounding it again; None if it cannot."""
        return None

    def read_packed(self, name: str) -> Packed:
        """A tensor that has a packing, exactly, in MLX's affine format."""
        raise NotImplementedError


@dataclass(frozen=True)
class Opened:
    """A source whose tensors have not been compared with its config yet."""

    config: ModelConfig
    weights: Weights
    tokenizer_files: Mapping[str, bytes]  # and generation settings, by file name
    warnings: tuple[str, ...] = ()
    title: str | None = None  # the model's name in the source
    # False for GGUF files of llama.cpp's converter; 10000 is then taken, wrong for Stable Code.
    gives_rope_base: bool = True

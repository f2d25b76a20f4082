"""What every source of weights offers: named tensors, read in blocks of rows.

Names are Hugging Face's whatever the file format. A source that is quantised
offers a matrix in two forms: dequantised by `read`, and exactly as it is by
`read_packed`, in the terms of MLX's affine quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from edge.model.config import ModelConfig

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Packing:
    """How MLX would store a quantised matrix exactly.

    `permuted`: its columns are in another order than the network's inputs.
    """

    bits: int
    group_size: int
    permuted: bool = False


@dataclass(frozen=True)
class Packed:
    """A quantised matrix (out, in) as MLX stores it.

    W[o, input_order[i]] = scales[o, i // group_size] * code[o, i] + biases[o, i // group_size]

    Attributes:
        packing: bits and group size.
        codes: uint32 (out, in * bits / 32), a stream of `bits`-wide codes, lowest bits first.
        scales: float16 (out, in / group_size).
        biases: float16 (out, in / group_size).
        input_order: int32 (in,), or None for the identity.
        bias_error_steps: by how much a bias differs at most from the source's exact one, in
            units of its scale; 0 where float16 holds it exactly.
    """

    packing: Packing
    codes: Array
    scales: Array
    biases: Array
    input_order: Array | None = None
    bias_error_steps: float = 0.0


class Weights(Protocol):
    """The tensors of one source."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape, dequantised, by Hugging Face name."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold them; none for generated weights."""
        ...

    @property
    def quantised(self) -> bool:
        """Whether the weights were rounded to a few bits before."""
        ...

    @property
    def unpackable(self) -> Mapping[str, str]:
        """Why a quantised tensor has no packing, by name."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows start to stop of a tensor as float16 or float32, never more precise than stored."""
        ...

    def packing(self, name: str) -> Packing | None:
        """How MLX can store the tensor without rounding it again; None if it cannot."""
        ...

    def read_packed(self, name: str) -> Packed:
        """A tensor that has a packing, in that form."""
        ...


class NeverPacked:
    """The part of `Weights` that sources of plain floats share."""

    quantised = False
    unpackable: Mapping[str, str] = MappingProxyType({})

    def packing(self, name: str) -> Packing | None:
        """None: floats."""
        return None

    def read_packed(self, name: str) -> Packed:
        """No tensor has this form.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{name} has no packing")


@dataclass(frozen=True)
class Opened:
    """What a source turned out to hold.

    Attributes:
        config: the network, as the source describes it.
        weights: its tensors; not yet compared with the config.
        companions: contents of tokenizer.json, tokenizer_config.json, generation_config.json
            and what else travels along, by file name.
        warnings: sentences that the user should read before trusting the result.
        title: the model's name as the source gives it, if it does.
    """

    config: ModelConfig
    weights: Weights
    companions: Mapping[str, bytes]
    warnings: tuple[str, ...] = field(default=())
    title: str | None = None

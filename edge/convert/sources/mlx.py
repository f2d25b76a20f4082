"""An MLX directory as a source: to convert again, or to compare with what it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from edge.convert.sources.weights import Array, Packed, Packing, Shape
from edge.errors import EdgeError
from edge.formats.safetensors import FLOATS, SafetensorsFile
from edge.model.config import ModelConfig
from edge.model.tensors import expected_shapes, input_order_shapes, order_of

CODE_BITS = 32
BITS, GROUP_SIZES = (2, 3, 4, 5, 6, 8), (32, 64, 128)


class MlxWeights:
    """Tensors of an MLX directory, quantised ones dequantised.

    Args:
        files: its safetensors files.
        config: the network.

    Raises:
        EdgeError: codes, scales and biases of a matrix do not fit each other, an order of
            inputs is none, or weights are whole numbers.
    """

    def __init__(self, files: tuple[SafetensorsFile, ...], config: ModelConfig):
        self._file_of = {name: file for file in files for name in file.entries}
        self.files: tuple[Path, ...] = tuple(file.path for file in files)
        self._packings: dict[str, Packing] = {}
        shapes: dict[str, Shape] = {}
        expected = expected_shapes(config)
        self._check_orders(input_order_shapes(config))
        for name, shape in expected.items():
            is_there = name in self._file_of and self._part(name, "scales") in self._file_of
            if is_there and len(shape) == 2:
                self._packings[name] = self._packing_of(name, shape)
                shapes[name] = shape
        belonging = {self._part(name, part) for name in shapes for part in ("scales", "biases")}
        known = shapes.keys() | belonging | self._orders
        for name, file in self._file_of.items():
            if name not in known:
                file.check_is_float(name)
                shapes[name] = file.entries[name].shape
        self.shapes: Mapping[str, Shape] = shapes
        self.quantised = bool(self._packings)
        self.unpackable: Mapping[str, str] = {
            name: "its scales or biases do not fit float16 exactly"
            for name in self._packings
            if not all(map(_fits_float16, self._scales_and_biases(name)))
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows of a tensor, dequantised in float32."""
        order = self._order_values(name)
        if name in self._packings:
            values = _dequantised(self._read_packed(name, start, stop))
        else:
            values = self._file_of[name].read(name, start, stop)
        if order is None:
            return values
        dense = np.empty_like(values)
        dense[:, order] = values
        return dense

    def packing(self, name: str) -> Packing | None:
        """Bits and group size of a quantised matrix."""
        return None if name in self.unpackable else self._packings.get(name)

    def read_packed(self, name: str) -> Packed:
        """A quantised matrix as it is.

        Raises:
            EdgeError: a scale or bias is not finite.
        """
        packed = self._read_packed(name, 0, None)
        if not (np.isfinite(packed.scales).all() and np.isfinite(packed.biases).all()):
            raise EdgeError(
                f"{self._file_of[name].path}: tensor {name} has scales or biases that are not "
                f"finite; the checkpoint is damaged, so download it again."
            )
        half = np.float16
        return replace(packed, scales=packed.scales.astype(half), biases=packed.biases.astype(half))

    def _scales_and_biases(self, name: str) -> Iterator[Array]:
        for part in ("scales", "biases"):
            stored = self._part(name, part)
            yield self._file_of[stored].read(stored)

    def _read_packed(self, name: str, start: int, stop: int | None) -> Packed:
        codes, scales, biases = (
            self._file_of[part].read(part, start, stop)
            for part in (name, self._part(name, "scales"), self._part(name, "biases"))
        )
        return Packed(
            self._packings[name], codes.view(np.uint32), scales, biases, self._order_values(name)
        )

    def _order_values(self, name: str) -> Array | None:
        order = self._order_of(name)
        return None if order is None else self._file_of[order].read(order)

    def _check_orders(self, expected: Mapping[str, Shape]) -> None:
        """Every order of inputs has each of them once."""
        self._orders = expected.keys() & self._file_of.keys()
        for name in self._orders:
            file = self._file_of[name]
            entry, (inputs,) = file.entries[name], expected[name]
            fits = entry.dtype == "I32" and entry.shape == (inputs,)
            if not fits or not np.array_equal(np.sort(file.read(name)), np.arange(inputs)):
                raise EdgeError(
                    f"{file.path}: tensor {name} is no order of {inputs} inputs; "
                    f"convert from the unquantised checkpoint."
                )

    def _order_of(self, name: str) -> str | None:
        order = order_of(name.removesuffix(".weight"))
        return order if order in self._file_of else None

    @staticmethod
    def _part(name: str, part: str) -> str:
        return f"{name.removesuffix('.weight')}.{part}"

    def _packing_of(self, name: str, shape: Shape) -> Packing:
        """From the shapes alone, which no setting can contradict."""
        codes = self._file_of[name].entries[name].shape
        parts = [self._part(name, part) for part in ("scales", "biases")]
        found = [self._file_of[p].entries[p].shape for p in parts if p in self._file_of]
        dtypes = [self._file_of[p].entries[p].dtype for p in parts if p in self._file_of]
        rows, columns = shape
        fits = (
            self._file_of[name].entries[name].dtype == "U32"
            and len(found) == 2
            and dtypes[0] == dtypes[1]
            and dtypes[0] in FLOATS
            and found[0] == found[1]
            and len(codes) == len(found[0]) == 2
            and codes[0] == found[0][0] == rows
            and prod(found[0]) > 0
            and columns % found[0][1] == 0
            and codes[1] * CODE_BITS % columns == 0
        )
        if not fits:
            raise EdgeError(
                f"{self._file_of[name].path}: the codes, scales and biases of {name} do not fit "
                f"{list(shape)} in MLX's affine mode; convert from the unquantised checkpoint."
            )
        bits, group_size = codes[1] * CODE_BITS // columns, columns // found[0][1]
        if bits not in BITS or group_size not in GROUP_SIZES:
            raise EdgeError(
                f"{self._file_of[name].path}: {name} has {bits} bits in groups of {group_size}, "
                f"which MLX does not know; convert from the unquantised checkpoint."
            )
        return Packing(bits, group_size, self._order_of(name) is not None)


def _dequantised(packed: Packed) -> Array:
    """The matrix in float32, columns as stored."""
    with mx.stream(mx.cpu):
        return np.asarray(
            mx.dequantize(
                mx.array(packed.codes),
                mx.array(packed.scales.astype(np.float32)),
                mx.array(packed.biases.astype(np.float32)),
                group_size=packed.packing.group_size,
                bits=packed.packing.bits,
            )
        )


def _fits_float16(values: Array) -> bool:
    """Whether every value is float16's too, as most bfloat16 scales are; NaN is not asked here."""
    if values.dtype == np.float16:
        return True
    with np.errstate(over="ignore"):
        return np.array_equal(
            values.astype(np.float16).astype(values.dtype), values, equal_nan=True
        )

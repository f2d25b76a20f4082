"""Unquantised and MLX directories as a source of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import product

import mlx.core as mx
import numpy as np

from edge.convert.sources.weights import Packed, Packing, Weights
from edge.errors import EdgeError
from edge.formats.safetensors import FLOATS, Array, Shape, StoredTensor
from edge.model.config import ModelConfig
from edge.model.tensors import expected_shapes, input_order_shapes, order_of

CODE_BITS = 32
BITS, GROUP_SIZES = (2, 3, 4, 5, 6, 8), (32, 64, 128)


class DirectoryWeights(Weights):
    """Tensors of a directory; matrices in MLX's affine format are dequantised."""

    def __init__(self, tensors: Mapping[str, StoredTensor], config: ModelConfig):
        self._tensors = tensors
        self.files = tuple(dict.fromkeys(tensor.path for tensor in tensors.values()))
        orders = self._check_orders(input_order_shapes(config))
        matrices = {n: shape for n, shape in expected_shapes(config).items() if len(shape) == 2}
        self._packings = {
            name: self._packing_of(name, shape)
            for name, shape in matrices.items()
            if name in tensors and _part(name, "scales") in tensors
        }
        parts = {_part(name, part) for name in self._packings for part in ("scales", "biases")}
        self.shapes = {name: matrices[name] for name in self._packings}
        for name, tensor in tensors.items():
            if name not in self._packings.keys() | parts | orders:
                tensor.check_is_float()
                self.shapes[name] = tensor.shape
        self.quantised = bool(self._packings)

    @cached_property
    def unpackable(self) -> Mapping[str, str]:
        found = (
            name
            for name in self._packings
            for part in ("scales", "biases")
            if not _fits_float16(self._tensors[_part(name, part)].read())
        )
        return dict.fromkeys(found, "its scales or biases do not fit float16 exactly")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows start to stop, float32 if quantised or bfloat16, inputs in the network's order."""
        order = self._order(name)
        if name in self._packings:
            values = _dequantised(self._read_packed(name, start, stop))
        else:
            values = self._tensors[name].read(start, stop)
        if order is None:
            return values
        dense = np.empty_like(values)
        dense[:, order] = values
        return dense

    def packing(self, name: str) -> Packing | None:
        return None if name in self.unpackable else self._packings.get(name)

    def read_packed(self, name: str) -> Packed:
        packed = self._read_packed(name)
        if not (np.isfinite(packed.scales).all() and np.isfinite(packed.biases).all()):
            raise EdgeError(
                f"{self._tensors[name].path}: tensor {name} has scales or biases that are not "
                f"finite; download it again."
            )
        half = np.float16
        return replace(packed, scales=packed.scales.astype(half), biases=packed.biases.astype(half))

    def _read_packed(self, name: str, start: int = 0, stop: int | None = None) -> Packed:
        codes, scales, biases = (
            self._tensors[part].read(start, stop)
            for part in (name, _part(name, "scales"), _part(name, "biases"))
        )
        order = self._order(name)
        return Packed(self._packings[name], codes.view(np.uint32), scales, biases, order)

    def _order(self, name: str) -> Array | None:
        order = order_of(name.removesuffix(".weight"))
        return self._tensors[order].read() if order and order in self._tensors else None

    def _check_orders(self, expected: Mapping[str, Shape]) -> set[str]:
        """Names of the input orders; an EdgeError unless each is a permutation."""
        found = expected.keys() & self._tensors.keys()
        for name in found:
            tensor, (inputs,) = self._tensors[name], expected[name]
            fits = tensor.dtype == "I32" and tensor.shape == (inputs,)
            if not fits or not np.array_equal(np.sort(tensor.read()), np.arange(inputs)):
                raise EdgeError(
                    f"{tensor.path}: tensor {name} is not an order of {inputs} inputs; "
                    f"convert from the unquantised checkpoint."
                )
        return found

    def _packing_of(self, name: str, shape: Shape) -> Packing:
        """Bits and group size by the shapes."""
        codes, scales = self._tensors[name], self._tensors[_part(name, "scales")]
        biases = self._tensors.get(_part(name, "biases"), codes)
        same = scales.dtype in FLOATS and (biases.dtype, biases.shape) == (
            scales.dtype,
            scales.shape,
        )
        rows, columns = shape
        for bits, group_size in product(BITS, GROUP_SIZES):
            wanted = ("U32", (rows, columns * bits // CODE_BITS), (rows, columns // group_size))
            found = (codes.dtype, codes.shape, scales.shape)
            if same and found == wanted and columns % group_size == 0:
                permuted = order_of(name.removesuffix(".weight")) in self._tensors
                return Packing(bits, group_size, permuted)
        raise EdgeError(
            f"{codes.path}: the codes, scales and biases of {name} do not fit {list(shape)} in "
            f"MLX's affine mode of 2 to 8 bits; convert from the unquantised checkpoint."
        )


def _part(name: str, part: str) -> str:
    return f"{name.removesuffix('.weight')}.{part}"


def _dequantised(packed: Packed) -> Array:
    """The matrix in float32, columns as stored."""
    with mx.stream(mx.cpu):
        scales, biases = (mx.array(a.astype(np.float32)) for a in (packed.scales, packed.biases))
        form = packed.packing
        values = mx.dequantize(mx.array(packed.codes), scales, biases, form.group_size, form.bits)
        return np.asarray(values)


def _fits_float16(values: Array) -> bool:
    """True if float16 holds every value, as it does for most bfloat16 scales."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return np.array_equal(half.astype(values.dtype), values, equal_nan=True)

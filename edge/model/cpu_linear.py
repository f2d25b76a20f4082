"""Linear layers on a Linux CPU that has our BLAS: fewer operations, and products of 4-bit codes.

Float matrices: nn.Linear transposes the matrix and flattens its input at every call, which is
three operations of some 2 us each beside the product. The transposed matrix is kept, a view.

Quantised matrices: MLX's own product takes the codes one by one. Of many rows, the matrix is
dequantised for the one product, which the BLAS then does. Few rows of 4-bit codes: each by
`row_by_int4` of `cpu_blas.c`, with the weights at 4 bits. `mx.addmm` is how MLX reaches both loops
of that file: it hands on the pointers, and nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import mlx.core as mx
from mlx import nn

from edge.linux_cpu import uses_openblas

# For more rows dequantising pays, as measured at the demo's and at Stable Code 3B's
# widths on two Zen 5 cores: below and above the size from which malloc asks the system for
# fresh pages each time, which then cost more than the codes.
LARGE_BYTES = 32 << 20
INT4_ROWS, INT4_ROWS_LARGE = 7, 47
OTHER_ROWS, OTHER_ROWS_LARGE = 1, 7
INT4_ALPHA = 2.0**100  # times the size of a group: as in cpu_blas.c
CODES_PER_WORD = 8
INT4_SHIFTS = mx.arange(0, 32, 4, dtype=mx.uint32)
FEWEST_OUTPUTS = 8  # so that there are as many words as inputs


def use_blas(model: nn.Module) -> None:
    """Let a float32 model's matrices be multiplied as above; nothing without our BLAS.

    The arrays of a 4-bit one become views of one array, with the codes, scales and biases behind
    one another as `cpu_blas.c` reads them; one matrix at a time is in memory twice.
    """
    if not uses_openblas():
        return
    for _, layer in model.named_modules():
        kind = KINDS.get(type(layer))
        if kind is None or layer.get("scales", layer.weight).dtype != mx.float32:
            continue
        layer.__class__ = kind  # its arrays and settings stay
        if isinstance(layer, nn.Linear):
            layer.factor = _Factor(layer.weight, layer.weight.T[None])
            mx.eval(layer.factor.transposed)
        elif _can_pack(layer):
            layer.packed = _pack(layer)


@dataclass(frozen=True)
class _Factor:
    """A float matrix (outputs, inputs), and a view of it as products take it.

    Attributes:
        weight: the layer's; where the layer has another by now, this is out of date.
        transposed: (1, inputs, outputs).
    """

    weight: mx.array
    transposed: mx.array


@dataclass(frozen=True)
class _Packed:
    """A 4-bit matrix (outputs, inputs), as products take it; all arrays are views of one.

    Attributes:
        weight, scales, biases: the layer's; where the layer has others by now, this is out of
            date.
        factor: the codes as floats (1, inputs / 8, outputs).
        column, row: as many of them as there are outputs and inputs: (outputs, 1), (1, inputs).
        addend: (1, 1, outputs), whatever its values: addmm asks for one.
        alpha: what tells the BLAS that this is meant, with the size of a group.
        few_rows: as many as are multiplied one by one.
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array
    factor: mx.array
    column: mx.array
    row: mx.array
    addend: mx.array
    alpha: float
    few_rows: int

    def product(self, x: mx.array) -> mx.array:
        """X (..., inputs) -> (..., outputs)."""
        inputs, words, outputs = x.shape[-1], *self.factor.shape[1:]
        rows, x = x.size // inputs, x.astype(mx.float32)
        if rows > self.few_rows:
            matrix = mx.addmm(mx.array(0.0), self.column, self.row, alpha=self.alpha)
            return x @ matrix.T
        # The product is told of the first eighth of each row and finds the rest behind it.
        eighths = mx.as_strided(x, (rows, 1, words), (inputs, words, 1))
        out = mx.addmm(self.addend, eighths, self.factor, alpha=self.alpha)
        return out.reshape(*x.shape[:-1], outputs)


def _pack(layer: Any) -> _Packed:
    outputs, words = layer.weight.shape
    parts = (layer.weight, layer.scales.view(mx.uint32), layer.biases.view(mx.uint32))
    joined = mx.concatenate([part.flatten() for part in parts])
    codes, scales, biases = mx.split(
        joined, [layer.weight.size, layer.weight.size + layer.scales.size]
    )
    layer.weight = codes.reshape(outputs, words)
    layer.scales = scales.view(mx.float32).reshape(outputs, -1)
    layer.biases = biases.view(mx.float32).reshape(outputs, -1)
    floats = codes.view(mx.float32)
    large = outputs * words * CODES_PER_WORD * mx.float32.size > LARGE_BYTES
    packed = _Packed(
        layer.weight,
        layer.scales,
        layer.biases,
        floats.reshape(1, outputs, words).swapaxes(1, 2),
        floats[:outputs].reshape(outputs, 1),
        floats[: words * CODES_PER_WORD].reshape(1, -1),
        floats[:outputs].reshape(1, 1, outputs),
        INT4_ALPHA * layer.group_size,
        INT4_ROWS_LARGE if large else INT4_ROWS,
    )
    mx.eval(layer.parameters(), packed.factor, packed.column, packed.row, packed.addend)
    return packed


@mx.compile
def _int4_row(codes: mx.array, scales: mx.array, biases: mx.array, shifts: mx.array) -> mx.array:
    """Codes (..., words) of one row, its scales and biases -> (..., inputs), as mx.dequantize.

    Which is for every number of bits, and of 25 operations.
    """
    groups = (scales.size, 1, 1)
    numbers = codes.reshape(scales.size, -1, 1) >> shifts & 15
    row = numbers * scales.reshape(groups) + biases.reshape(groups)
    return row.reshape(*codes.shape[:-1], -1)


def _can_pack(layer: Any) -> bool:
    is_int4 = layer.bits == 4 and layer.mode == "affine"
    return is_int4 and len(layer.weight) >= FEWEST_OUTPUTS and _int4_works()


@cache
def _int4_works() -> bool:
    """Whether `addmm` hands the pointers on as it did in the MLX this was written for."""
    layer = nn.Linear(64, FEWEST_OUTPUTS, bias=False).to_quantized(32, 4)
    x, expected = mx.random.normal((1, 2, 64)), mx.dequantize(*_arrays(layer), 32, 4)
    packed = _pack(layer)
    found = (packed.product(x), replace(packed, few_rows=0).product(x))
    return all(mx.allclose(y, x @ expected.T, rtol=1e-4, atol=1e-4).item() for y in found)


class _Linear(nn.Linear):  # type: ignore[misc]
    factor: _Factor

    def __call__(self, x: mx.array) -> mx.array:
        # Of a batch, each sequence would be a product of its own.
        if x.ndim != 3 or x.shape[0] != 1 or self.factor.weight is not self.weight:
            out: mx.array = super().__call__(x)
        elif "bias" in self:
            out = mx.addmm(self.bias, x, self.factor.transposed)
        else:
            out = x @ self.factor.transposed
        return out


class _QuantizedLinear(nn.QuantizedLinear):  # type: ignore[misc]
    packed: _Packed | None = None

    def __call__(self, x: mx.array) -> mx.array:
        out = _quantised_product(self, x)
        return out + self["bias"] if "bias" in self else out


class _QuantizedEmbedding(nn.QuantizedEmbedding):  # type: ignore[misc]
    packed: _Packed | None = None

    def __call__(self, ids: mx.array) -> mx.array:
        if ids.size > 1 or self.packed is None:
            out: mx.array = super().__call__(ids)
        else:
            out = _int4_row(self.weight[ids], self.scales[ids], self.biases[ids], INT4_SHIFTS)
        return out

    def as_linear(self, x: mx.array) -> mx.array:
        return _quantised_product(self, x)


KINDS = {
    nn.Linear: _Linear,
    nn.QuantizedLinear: _QuantizedLinear,
    nn.QuantizedEmbedding: _QuantizedEmbedding,
}


def _arrays(layer: Any) -> tuple[mx.array, mx.array, mx.array]:
    return layer["weight"], layer["scales"], layer.get("biases")


def _quantised_product(layer: Any, x: mx.array) -> mx.array:
    """X (..., inputs) -> (..., outputs)."""
    arrays = weight, scales, biases = _arrays(layer)
    packed = layer.packed
    if (
        packed is not None
        and packed.weight is weight
        and packed.scales is scales
        and packed.biases is biases
    ):
        product: mx.array = packed.product(x)
        return product
    inputs = x.shape[-1]
    large = weight.shape[0] * inputs * mx.float32.size > LARGE_BYTES
    how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    if x.size // inputs <= (OTHER_ROWS_LARGE if large else OTHER_ROWS):
        product = mx.quantized_matmul(x, *arrays, True, **how)
    else:
        product = x @ mx.dequantize(*arrays, **how).T
    return product

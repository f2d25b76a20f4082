"""Linear layers on a Linux CPU that has our BLAS: fewer operations, and products of 4-bit codes.

Float matrices: nn.Linear transposes the matrix and flattens its input at every call, three
operations of some 2 us each. The transposed matrix is kept, a view.

Quantised matrices: MLX's own product takes the codes one by one. For many rows the matrix is
dequantised, and the BLAS multiplies; few rows of 4-bit codes go to `row_by_int4` of `cpu_blas.c`
one by one. `mx.addmm` is how MLX reaches that file: it hands the pointers on and copies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import mlx.core as mx
from mlx import nn

from edge.linux_cpu import uses_openblas

# For more rows dequantising pays, as measured at the demo's and at Stable Code 3B's widths on two
# Zen 5 cores: below and above the 32 MiB of float32 from which malloc asks for fresh pages.
LARGE_NUMBERS = 8 << 20
INT4_ROWS, INT4_ROWS_LARGE = 7, 47
OTHER_ROWS, OTHER_ROWS_LARGE = 1, 7
INT4_ALPHA = 2.0**100  # times the size of a group: as in cpu_blas.c
CODES_PER_WORD = 8
INT4_SHIFTS = mx.arange(0, 32, 4, dtype=mx.uint32)
FEWEST_OUTPUTS = 8  # so that there are as many words as inputs


def use_blas(model: nn.Module) -> None:
    """Lets a float32 model's matrices be multiplied as above; does nothing without our BLAS."""
    if not uses_openblas():
        return
    for _, layer in model.named_modules():
        kind = KINDS.get(type(layer))
        if kind is None or layer.get("scales", layer.weight).dtype != mx.float32:
            continue
        layer.__class__ = kind  # its arrays and settings stay
        if isinstance(layer, nn.Linear):
            # Names with an underscore are not parameters.
            layer._source, layer._transposed = layer.weight, layer.weight.T[None]
            mx.eval(layer._transposed)
        elif layer.bits == 4 and layer.mode == "affine" and len(layer.weight) >= FEWEST_OUTPUTS:
            layer.packed = _pack(layer) if _int4_works() else None


class _Linear(nn.Linear):
    def __call__(self, x: mx.array) -> mx.array:
        # Of a batch, each sequence would be a product of its own. A weight that was replaced since
        # is not the one that was transposed.
        if x.ndim != 3 or x.shape[0] != 1 or self._source is not self.weight:
            return super().__call__(x)
        if "bias" in self:
            return mx.addmm(self.bias, x, self._transposed)
        return x @ self._transposed


class _QuantizedLinear(nn.QuantizedLinear):
    packed: _Packed | None = None

    def __call__(self, x: mx.array) -> mx.array:
        out = _quantised_product(self, x)
        return out + self["bias"] if "bias" in self else out


class _QuantizedEmbedding(nn.QuantizedEmbedding):
    packed: _Packed | None = None

    def __call__(self, ids: mx.array) -> mx.array:
        if ids.size > 1 or self.packed is None:
            return super().__call__(ids)
        return _int4_row(self.weight[ids], self.scales[ids], self.biases[ids], INT4_SHIFTS)

    def as_linear(self, x: mx.array) -> mx.array:
        return _quantised_product(self, x)


KINDS = {
    nn.Linear: _Linear,
    nn.QuantizedLinear: _QuantizedLinear,
    nn.QuantizedEmbedding: _QuantizedEmbedding,
}


def _quantised_product(layer: Any, x: mx.array) -> mx.array:
    """x (..., inputs) -> (..., outputs)."""
    weight, scales, biases = layer["weight"], layer["scales"], layer.get("biases")
    packed = layer.packed
    if packed and packed.weight is weight and packed.scales is scales and packed.biases is biases:
        return packed.product(x)
    inputs = x.shape[-1]
    how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    most = OTHER_ROWS_LARGE if weight.shape[0] * inputs > LARGE_NUMBERS else OTHER_ROWS
    if x.size // inputs <= most:
        return mx.quantized_matmul(x, weight, scales, biases, True, **how)
    return x @ mx.dequantize(weight, scales, biases, **how).T


@dataclass(frozen=True)
class _Packed:
    """A 4-bit matrix (outputs, inputs), as products take it; all arrays are views of one."""

    weight: mx.array  # the layer's, as scales and biases; where it has others, this is out of date
    scales: mx.array
    biases: mx.array
    floats: mx.array  # the codes as if they were floats, (outputs * inputs / 8,)
    factor: mx.array  # the same (1, inputs / 8, outputs)
    addend: mx.array  # (1, 1, outputs), whatever its values: addmm asks for one
    alpha: float  # tells the BLAS that this is meant, with the size of a group
    few_rows: int  # as many as are multiplied one by one

    def product(self, x: mx.array) -> mx.array:
        """x (..., inputs) -> (..., outputs)."""
        inputs, words, outputs = x.shape[-1], *self.factor.shape[1:]
        rows, x = x.size // inputs, x.astype(mx.float32)
        if rows > self.few_rows:
            column, row = self.floats[:outputs, None], self.floats[None, :inputs]
            return x @ mx.addmm(mx.array(0.0), column, row, alpha=self.alpha).T
        # The product is told of the first eighth of each row and finds the rest behind it.
        eighths = mx.as_strided(x, (rows, 1, words), (inputs, words, 1))
        out = mx.addmm(self.addend, eighths, self.factor, alpha=self.alpha)
        return out.reshape(*x.shape[:-1], outputs)


def _pack(layer: Any) -> _Packed:
    outputs, words = layer.weight.shape
    # One array, as `cpu_blas.c` reads it; one matrix at a time is in memory twice.
    parts = (layer.weight, layer.scales.view(mx.uint32), layer.biases.view(mx.uint32))
    joined = mx.concatenate([part.flatten() for part in parts])
    ends = [layer.weight.size, layer.weight.size + layer.scales.size]
    codes, scales, biases = mx.split(joined, ends)
    layer.weight = codes.reshape(outputs, words)
    layer.scales = scales.view(mx.float32).reshape(outputs, -1)
    layer.biases = biases.view(mx.float32).reshape(outputs, -1)
    floats = codes.view(mx.float32)
    factor = floats.reshape(1, outputs, words).swapaxes(1, 2)
    addend = floats[:outputs].reshape(1, 1, outputs)
    mx.eval(layer.parameters(), floats, factor, addend)
    most = INT4_ROWS_LARGE if codes.size * CODES_PER_WORD > LARGE_NUMBERS else INT4_ROWS
    alpha = INT4_ALPHA * layer.group_size
    return _Packed(layer.weight, layer.scales, layer.biases, floats, factor, addend, alpha, most)


@cache
def _int4_works() -> bool:
    """True where `addmm` hands the pointers on, as in the MLX this was written for."""
    layer = nn.Linear(64, FEWEST_OUTPUTS, bias=False).to_quantized(32, 4)
    x = mx.random.normal((1, 2, 64))
    expected = x @ mx.dequantize(layer.weight, layer.scales, layer.biases, 32, 4).T
    packed = _pack(layer)
    found = (packed.product(x), replace(packed, few_rows=0).product(x))
    return all(mx.allclose(y, expected, rtol=1e-4, atol=1e-4).item() for y in found)


@mx.compile
def _int4_row(codes: mx.array, scales: mx.array, biases: mx.array, shifts: mx.array) -> mx.array:
    """Codes (..., words) of one row -> (..., inputs): mx.dequantize, which is 25 operations."""
    groups = (scales.size, 1, 1)
    numbers = codes.reshape(scales.size, -1, 1) >> shifts & 15
    row = numbers * scales.reshape(groups) + biases.reshape(groups)
    return row.reshape(*codes.shape[:-1], -1)

"""Linear layers on a Linux CPU with `cpu_blas.c`: fewer operations, and products of 4-bit codes.

Float matrices: nn.Linear transposes the matrix and flattens its input at every call, three
operations of some 2 us each. Here the transposed matrix, a view, is kept.

Quantised matrices: MLX's own product reads one code at a time. For many rows the matrix is
dequantised and multiplied by the BLAS; few rows are multiplied by the codes of a 4-bit matrix, by
`rows_by_int4` of `cpu_blas.c`. `mx.addmm` passes the pointers to it without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import mlx.core as mx
from mlx import nn

from edge.linux_cpu import uses_openblas

# With more rows than these dequantising is faster: measured at the demo's and at Stable Code 3B's
# widths on two Zen 5 cores. A matrix is large from 32 MiB of float32 on, where malloc asks the
# system for new pages every time.
LARGE_SIZE = 8 << 20
INT4_ROWS, INT4_ROWS_LARGE = 16, 47
OTHER_ROWS, OTHER_ROWS_LARGE = 1, 7
INT4_ALPHA = 2.0**100  # times the group size, as in cpu_blas.c
CODES_PER_WORD = 8
INT4_SHIFTS = mx.array([*range(0, 32, 4)], mx.uint32)  # not lazy: any thread may evaluate it
MIN_OUTPUTS = 8  # so that a matrix has at least as many words as inputs


def use_blas(model: nn.Module) -> None:
    """Replaces a float32 model's linear layers by those below; no-op without `cpu_blas.c`."""
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
        elif layer.bits == 4 and layer.mode == "affine" and len(layer.weight) >= MIN_OUTPUTS:
            layer.packed = _pack(layer) if _int4_works() else None


class _Linear(nn.Linear):
    def __call__(self, x: mx.array) -> mx.array:
        # A weight that was replaced since is not the transposed one.
        if x.ndim != 3 or self._source is not self.weight:
            return super().__call__(x)
        # All sequences of a batch in one product.
        rows = x if x.shape[0] == 1 else x.reshape(1, -1, x.shape[2])
        if "bias" in self:
            out = mx.addmm(self.bias, rows, self._transposed)
        else:
            out = rows @ self._transposed
        return out if rows is x else out.reshape(*x.shape[:2], -1)


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
    few_rows = OTHER_ROWS_LARGE if weight.shape[0] * inputs > LARGE_SIZE else OTHER_ROWS
    if x.size // inputs <= few_rows:
        return mx.quantized_matmul(x, weight, scales, biases, True, **how)
    return x @ mx.dequantize(weight, scales, biases, **how).T


@dataclass(frozen=True)
class _Packed:
    """A 4-bit matrix (outputs, inputs) as passed to `cpu_blas.c`; all arrays are views of one."""

    weight: mx.array  # weight, scales and biases are the layer's, or this is out of date
    scales: mx.array
    biases: mx.array
    floats: mx.array  # the codes viewed as floats, (outputs * inputs / 8,)
    factor: mx.array  # the same, (1, inputs / 8, outputs)
    addend: mx.array  # (1, 1, outputs), values unused: addmm requires one
    alpha: float  # selects the 4-bit product, and contains the group size
    few_rows: int  # up to so many rows are multiplied by the codes

    def product(self, x: mx.array) -> mx.array:
        """x (..., inputs) -> (..., outputs)."""
        inputs, words, outputs = x.shape[-1], *self.factor.shape[1:]
        rows, x = x.size // inputs, x.astype(mx.float32)
        if rows > self.few_rows:
            column, row = self.floats[:outputs, None], self.floats[None, :inputs]
            return x @ mx.addmm(mx.array(0.0), column, row, alpha=self.alpha).T
        # The product gets as many numbers as there are words; all of the rows are in memory there.
        eighths = mx.as_strided(x, (1, rows, words), (0, words, 1))
        out = mx.addmm(self.addend, eighths, self.factor, alpha=self.alpha)
        return out.reshape(*x.shape[:-1], outputs)


def _pack(layer: Any) -> _Packed:
    outputs, words = layer.weight.shape
    # One array, as `cpu_blas.c` reads it; only one matrix at a time is in memory twice.
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
    few_rows = INT4_ROWS_LARGE if codes.size * CODES_PER_WORD > LARGE_SIZE else INT4_ROWS
    alpha, matrix = INT4_ALPHA * layer.group_size, (layer.weight, layer.scales, layer.biases)
    return _Packed(*matrix, floats, factor, addend, alpha, few_rows)


@cache
def _int4_works() -> bool:
    """True where `addmm` passes the pointers on, which another MLX may not do."""
    layer = nn.Linear(64, MIN_OUTPUTS, bias=False).to_quantized(32, 4)
    x = mx.random.normal((1, 2, 64))
    expected = x @ mx.dequantize(layer.weight, layer.scales, layer.biases, 32, 4).T
    packed = _pack(layer)
    found = (packed.product(x), replace(packed, few_rows=0).product(x))
    return all(mx.allclose(y, expected, rtol=1e-4, atol=1e-4).item() for y in found)


@mx.compile
def _int4_row(codes: mx.array, scales: mx.array, biases: mx.array, shifts: mx.array) -> mx.array:
    """Codes (..., words) of one row -> (..., inputs), as mx.dequantize in 25 operations."""
    groups = (scales.size, 1, 1)
    values = codes.reshape(scales.size, -1, 1) >> shifts & 15
    row = values * scales.reshape(groups) + biases.reshape(groups)
    return row.reshape(*codes.shape[:-1], -1)

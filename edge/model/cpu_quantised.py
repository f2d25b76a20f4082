"""Quantised matrices on a CPU, where MLX's own product takes its codes one by one.

Many rows: the matrix is dequantised for the one product, which the BLAS then does. Few rows of
4-bit codes: each by `row_by_int4` of `cpu_blas.c`, with the weights at 4 bits. `mx.addmm` is how
MLX reaches both loops of that file: it hands on the pointers, and nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

from edge.linux_cpu import uses_openblas

# From so many rows on dequantising pays, as measured at the demo's and at Stable Code 3B's
# widths on two Zen 5 cores: below and above the size from which malloc asks the system for
# fresh pages each time, which then cost more than the codes.
LARGE_BYTES = 32 << 20
INT4_ROWS, INT4_ROWS_LARGE = 8, 48
OTHER_ROWS, OTHER_ROWS_LARGE = 2, 8
INT4_ALPHA = 2.0**100  # times the size of a group: as in cpu_blas.c
CODES_PER_WORD = 8
FEWEST_OUTPUTS = 8  # so that there are as many words as inputs


def use_blas(model: nn.Module) -> None:
    """Let a float32 model's quantised matrices be multiplied as above; nothing without our BLAS.

    The arrays of a 4-bit one become views of one array, with the codes, scales and biases behind
    one another as `cpu_blas.c` reads them; one matrix at a time is in memory twice.
    """
    if not uses_openblas():
        return
    for _, layer in model.named_modules():
        kind = {nn.QuantizedLinear: _Linear, nn.QuantizedEmbedding: _Embedding}.get(type(layer))
        if kind is None or layer.mode != "affine" or layer.scales.dtype != mx.float32:
            continue
        layer.__class__ = kind  # its arrays and settings stay
        if layer.bits == 4 and layer.weight.shape[0] >= FEWEST_OUTPUTS:
            layer.packed = _pack(layer)


@dataclass(frozen=True)
class _Packed:
    """A layer's 4-bit matrix (outputs, inputs), as products take it; all are views of one array.

    Attributes:
        arrays: the layer's weight, scales and biases. Where the layer has others by now, this
            is out of date.
        factor: the codes as floats (1, inputs / 8, outputs).
        column, row: as many of them as there are outputs and inputs: (outputs, 1), (1, inputs).
        addend: (1, 1, outputs), whatever its values: addmm asks for one.
        alpha: what tells the BLAS that this is meant, with the size of a group.
    """

    arrays: tuple[mx.array, mx.array, mx.array]
    factor: mx.array
    column: mx.array
    row: mx.array
    addend: mx.array
    alpha: float

    def multiply(self, x: mx.array) -> mx.array:
        """X (..., inputs) -> (..., outputs), row by row."""
        # The product is told of the first eighth of each row and finds the rest behind it.
        eighths = x.reshape(-1, CODES_PER_WORD, self.factor.shape[1])[:, :1]
        out = mx.addmm(self.addend, eighths, self.factor, alpha=self.alpha)
        return out.reshape(*x.shape[:-1], self.factor.shape[2])

    def dequantise(self) -> mx.array:
        """The matrix in float32."""
        return mx.addmm(mx.array(0.0), self.column, self.row, alpha=self.alpha)


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
    packed = _Packed(
        (layer.weight, layer.scales, layer.biases),
        floats.reshape(1, outputs, words).swapaxes(1, 2),
        floats[:outputs].reshape(outputs, 1),
        floats[: words * CODES_PER_WORD].reshape(1, -1),
        floats[:outputs].reshape(1, 1, outputs),
        INT4_ALPHA * layer.group_size,
    )
    mx.eval(*packed.arrays, packed.factor, packed.column, packed.row, packed.addend)
    return packed


class _Linear(nn.QuantizedLinear):  # type: ignore[misc]
    packed: _Packed | None = None

    def __call__(self, x: mx.array) -> mx.array:
        out = _product(self, x)
        return out + self["bias"] if "bias" in self else out


class _Embedding(nn.QuantizedEmbedding):  # type: ignore[misc]
    packed: _Packed | None = None

    def as_linear(self, x: mx.array) -> mx.array:
        return _product(self, x)


def _product(layer: Any, x: mx.array) -> mx.array:
    """X (..., inputs) -> (..., outputs)."""
    inputs = x.shape[-1]
    rows, outputs = x.size // inputs, layer.weight.shape[0]
    large = outputs * inputs * mx.float32.size > LARGE_BYTES
    arrays, packed = (layer.weight, layer.scales, layer.biases), layer.packed
    how = {"group_size": layer.group_size, "bits": layer.bits}
    out: mx.array
    if packed is not None and all(a is b for a, b in zip(packed.arrays, arrays, strict=True)):
        few = rows < (INT4_ROWS_LARGE if large else INT4_ROWS)
        out = packed.multiply(x) if few else x @ packed.dequantise().T
    else:
        few = rows < (OTHER_ROWS_LARGE if large else OTHER_ROWS)
        out = (
            mx.quantized_matmul(x, *arrays, True, **how)
            if few
            else x @ mx.dequantize(*arrays, **how).T
        )
    return out

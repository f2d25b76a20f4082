"""Arithmetic of GPTQ's format for one matrix, and of the same matrix in MLX's affine format.

A linear layer with I inputs and O outputs is stored as (AutoGPTQ, qlinear_cuda_old.py)

    qweight int32   (I * bits / 32, O)   codes, packed along the inputs
    qzeros  int32   (G, O * bits / 32)   zero points, packed along the outputs
    scales  float16 (G, O)
    g_idx   int32   (I,)                 the group of each input

and means W[o, i] = scales[g_idx[i], o] * (code[i, o] - zero[g_idx[i], o]). Numbers are packed as
a stream of `bits` each, lowest bits first, so that 3-bit codes straddle words. MLX's stream is the
same: the words of qweight, transposed, are MLX's words.
"""

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BITS = (2, 3, 4, 8)
MLX_GROUP_SIZES = (128, 64, 32)  # the cheapest first
# The first format stores zero points minus one, the second as they are.
FORMAT_1, FORMAT_2 = "gptq", "gptq_v2"
BLOCK_OUTPUTS = 512  # at once: the temporaries of a 3B model's widest matrix stay under 30 MB


def unpack(words: Array, bits: int) -> Array:
    """Numbers of a stream: 32-bit words (..., n), n a multiple of bits, to uint8 (..., m)."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return raw
    units: Array = raw
    per_unit = 8 // math.gcd(bits, 8)
    if bits == 3:  # three bytes hold eight numbers
        parts = raw.reshape(*raw.shape[:-1], -1, 3).astype(np.uint32)
        units = parts[..., 0] | parts[..., 1] << 8 | parts[..., 2] << 16
    numbers = np.empty((*units.shape, per_unit), np.uint8)
    for i in range(per_unit):
        numbers[..., i] = (units >> bits * i) & ((1 << bits) - 1)
    return numbers.reshape(*raw.shape[:-1], -1)


def pack(numbers: Array, bits: int) -> Array:
    """The inverse of `unpack`: uint8 (..., m) to uint32 (..., m * bits / 32)."""
    if bits == 8:
        return np.ascontiguousarray(numbers).view(np.uint32)
    unit: Any = np.uint32 if bits == 3 else np.uint8
    per_unit = 8 // math.gcd(bits, 8)
    split = numbers.reshape(*numbers.shape[:-1], -1, per_unit)
    units: Array = split[..., 0].astype(unit)
    for i in range(1, per_unit):
        units |= split[..., i].astype(unit) << bits * i
    if bits == 3:
        parts = np.stack([units >> shift & 255 for shift in (0, 8, 16)], axis=-1)
        units = parts.astype(np.uint8).reshape(*numbers.shape[:-1], -1)
    return units.view(np.uint32)


def zero_points(stored: Array, bits: int, stored_as: str) -> Array:
    """Zero points from stored numbers, uint8 (G, O); format 1 stores 0 as the largest number."""
    if stored_as == FORMAT_1:
        return (stored + np.uint8(1)) & np.uint8((1 << bits) - 1)
    return stored


def symmetric_format(stored: Array, bits: int) -> str | None:
    """The format in which these are zero points of a symmetric matrix; None if in neither."""
    middle = 1 << (bits - 1)
    formats = {middle - 1: FORMAT_1, middle: FORMAT_2}
    return formats.get(int(stored.flat[0])) if (stored == stored.flat[0]).all() else None


def in_groups(group_of: Array, groups: int) -> tuple[int, Array | None] | None:
    """Size of the groups and the order that makes each contiguous; None if sizes differ.

    `group_of` is each input's group, int (I,). The order is int32 (I,), None for the identity.
    """
    counts = np.bincount(group_of, minlength=groups)
    if (counts != counts[0]).any():
        return None
    order = np.argsort(group_of, kind="stable").astype(np.int32)
    return int(counts[0]), None if (order[1:] > order[:-1]).all() else order


def mlx_group_size(group_size: int) -> int | None:
    """The largest group size of MLX that divides a group; None if there is none."""
    return next((size for size in MLX_GROUP_SIZES if group_size % size == 0), None)


def dequantise(
    qweight: Array, zeros: Array, scales: Array, group_of: Array, bits: int, outputs: slice
) -> Array:
    """Rows of the matrix, float32 (outputs, I), inputs in the network's order.

    `zeros` come from `zero_points`. Exact for float16 scales: 11 times 9 bits fit float32.
    """
    start, stop, _ = outputs.indices(qweight.shape[1])
    dense = np.empty((max(0, stop - start), group_of.size), np.float32)
    for begin in range(start, stop, BLOCK_OUTPUTS):
        part = slice(begin, min(begin + BLOCK_OUTPUTS, stop))
        rows = dense[part.start - start : part.stop - start]
        rows[:] = unpack(words_by_output(qweight, part), bits)
        rows -= zeros[:, part].T.astype(np.float32).take(group_of, axis=1)
        rows *= scales[:, part].T.astype(np.float32).take(group_of, axis=1)
    return dense


def words_by_output(qweight: Array, outputs: slice | Array) -> Array:
    """Packed codes of some outputs, uint32 (outputs, I * bits / 32)."""
    return np.ascontiguousarray(qweight[:, outputs].T).view(np.uint32)


def affine_codes(
    qweight: Array, bits: int, input_order: Array | None, output_order: Array | None
) -> Array:
    """MLX's codes, uint32 (O, I * bits / 32), columns and rows in the given orders."""
    outputs = np.arange(qweight.shape[1]) if output_order is None else output_order
    if input_order is None:
        return words_by_output(qweight, outputs)
    codes = np.empty(qweight.shape[::-1], np.uint32)
    for begin in range(0, len(codes), BLOCK_OUTPUTS):
        part = slice(begin, begin + BLOCK_OUTPUTS)
        numbers = unpack(words_by_output(qweight, outputs[part]), bits)
        codes[part] = pack(numbers.take(input_order, axis=1), bits)
    return codes


def affine_biases(zeros: Array, scales: Array) -> tuple[Array, float]:
    """MLX's biases, -(zero * scale) in float16, and their largest error in units of the scale."""
    wide = scales.astype(np.float32)
    exact = -(zeros.astype(np.float32) * wide)
    biases = exact.astype(np.float16)
    error = np.abs(biases.astype(np.float32) - exact)
    steps = np.divide(error, np.abs(wide), out=np.zeros_like(error), where=wide != 0)
    return biases, float(steps.max(initial=0.0))

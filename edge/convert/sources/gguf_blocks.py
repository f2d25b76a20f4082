"""llama.cpp's affine block types, rearranged as MLX stores them: the same numbers.

Their blocks have 32 weights: a float16 scale d, for some a float16 minimum m, and the
codes q (ggml's ggml-common.h). Q8_0 is d*q with signed q, Q4_0 and Q5_0 are d*(q - 8)
and d*(q - 16), Q4_1 and Q5_1 are d*q + m. MLX's are scale*code + bias. A bias of
-8, -16 or -128 scales is exact in float16 unless it overflows: it moves the exponent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge.convert.sources.weights import Array

BLOCK_ITEMS = 32


@dataclass(frozen=True)
class Layout:
    """One type: bits a code, and the code that means zero, None where a minimum is stored."""

    bits: int
    zero_code: int | None = None
    group_size: int = BLOCK_ITEMS

    @property
    def head_bytes(self) -> int:
        """What comes before the codes: the scale and perhaps the minimum."""
        return 2 if self.zero_code is not None else 4

    @property
    def block_bytes(self) -> int:
        """A whole block."""
        return self.head_bytes + BLOCK_ITEMS * self.bits // 8


LAYOUTS = {
    "Q8_0": Layout(8, 128),
    "Q5_0": Layout(5, 16),
    "Q5_1": Layout(5),
    "Q4_0": Layout(4, 8),
    "Q4_1": Layout(4),
}


def read_scales(layout: Layout, raw: Array) -> tuple[Array, Array]:
    """Scales and biases of some rows; a bias that float16 cannot hold comes as infinity.

    Args:
        layout: their type.
        raw: uint8 (rows, row bytes), as stored.

    Returns:
        float16 (rows, blocks) twice.
    """
    blocks = raw.reshape(len(raw), -1, layout.block_bytes)
    head = np.ascontiguousarray(blocks[..., : layout.head_bytes]).view("<f2")
    scales = np.ascontiguousarray(head[..., 0])
    if layout.zero_code is None:
        return scales, np.ascontiguousarray(head[..., 1])
    with np.errstate(over="ignore", invalid="ignore"):
        return scales, scales * np.float16(-layout.zero_code)


def pack_codes(layout: Layout, raw: Array) -> Array:
    """The codes of some rows as MLX keeps them: uint32 (rows, items * bits / 32)."""
    blocks = raw.reshape(-1, layout.block_bytes)[:, layout.head_bytes :]
    if layout.bits == 8:
        stream = blocks ^ np.uint8(0x80)  # signed to offset by 128
    elif layout.bits == 4:
        codes = _nibbles(blocks)
        stream = codes[:, 0::2] | codes[:, 1::2] << 4
    else:
        high = np.unpackbits(blocks[:, :4], axis=1, bitorder="little")
        codes = _nibbles(blocks[:, 4:]) | high << 4
        bits = np.unpackbits(codes[..., None], axis=2, count=5, bitorder="little")
        stream = np.packbits(bits.reshape(len(bits), -1), axis=1, bitorder="little")
    return np.ascontiguousarray(stream).reshape(len(raw), -1).view("<u4")


def _nibbles(stored: Array) -> Array:
    """(blocks, 16) bytes as (blocks, 32) codes: all the low halves, then all the high."""
    return np.concatenate([stored & 15, stored >> 4], axis=1)

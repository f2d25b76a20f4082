"""The rotary position embedding (arXiv:2104.09864), scaled or not."""

import math
from typing import Any

import mlx.core as mx
from mlx import nn

from edge.model.backend import compiles
from edge.model.rope_scaling import RopeScaling


class RotaryEmbedding(nn.RoPE):
    """Rotary embedding of the first dims of each head, halves paired as in GPT-NeoX.

    All layers share one, so that a CPU computes the cosines and sines of a position once.
    """

    def __init__(self, dims: int, base: float, scaling: RopeScaling | None = None):
        super().__init__(dims, base=base)
        self._scaling, self._gain = scaling, scaling.attention_factor if scaling else 1.0
        self._frequencies: tuple[int, mx.array] | None = None  # for a context
        self._position: tuple[int | mx.array, mx.array, mx.array] | None = None

    def __call__(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """x (B, heads, L, width) at positions offset to offset + L - 1 -> same shape.

        A batch has an array of offsets, (B,), the same one in all layers.
        """
        length = x.shape[2]
        if not compiles(length):
            return self._rotate_all(x, offset)
        if self._position is None or not _is_same(self._position[0], offset):
            frequencies = self._frequencies_of(offset, length)
            at = mx.array(offset) if isinstance(offset, int) else offset[:, None, None, None]
            self._position = (offset, *_cosines_and_sines(at, frequencies, self._gain))
        return _rotated(x, *self._position[1:])

    def _rotate_all(self, x: mx.array, offset: int | mx.array) -> mx.array:
        if self._scaling is None:
            return super().__call__(x, offset=offset)
        if self._gain != 1:
            x = mx.concatenate([x[..., : self.dims] * self._gain, x[..., self.dims :]], axis=-1)
        periods = 1 / self._frequencies_of(offset, x.shape[2])
        how: dict[str, Any] = {"traditional": False, "base": None, "scale": 1.0}
        return mx.fast.rope(x, self.dims, offset=offset, freqs=periods, **how)

    def _frequencies_of(self, offset: int | mx.array, length: int) -> mx.array:
        """Radians per position, (dims / 2,); only dynamic ones depend on the context."""
        context = 0
        if self._scaling is not None and self._scaling.rope_type == "dynamic":
            first = offset if isinstance(offset, int) else int(offset.max())
            context = max(first + length, self._scaling.original_max_position_embeddings)
        if self._frequencies is None or self._frequencies[0] != context:
            if self._scaling is None:
                found = _plain_frequencies(self.dims, self.base)
            else:
                found = mx.array(self._scaling.frequencies(self.dims, self.base, context))
            self._frequencies = (context, found)
        return self._frequencies[1]


def _is_same(a: int | mx.array, b: int | mx.array) -> bool:
    return a == b if isinstance(a, int) and isinstance(b, int) else a is b


@mx.compile
def _plain_frequencies(dims: int, base: float) -> mx.array:
    """Radians per position, (dims / 2,), as in `mx.fast.rope`."""
    half = dims // 2
    return mx.exp(mx.arange(0, -half, -1) * (math.log(base) / half))


@mx.compile
def _cosines_and_sines(
    position: mx.array, frequencies: mx.array, gain: float
) -> tuple[mx.array, mx.array]:
    """Cosines and sines of positions (...), which have axes of 1 last, times the gain."""
    angles = position * frequencies
    return mx.cos(angles) * gain, mx.sin(angles) * gain


@mx.compile
def _rotated(x: mx.array, cosines: mx.array, sines: mx.array) -> mx.array:
    """x (B, heads, 1, width) -> the same shape."""
    half = cosines.shape[-1]
    cosines, sines = cosines.astype(x.dtype), sines.astype(x.dtype)
    a, b, rest = mx.split(x, [half, 2 * half], axis=-1)
    both = [a * cosines - b * sines, b * cosines + a * sines]
    return mx.concatenate([*both, rest] if rest.size else both, axis=-1)

"""How the network runs, apart from what it computes: choices that leave the result the same.

The fused attention of a decode step exists for some widths of a head only. The others fall
back, silently, to two matrix products around a softmax, which write all scores to memory and
read them again. Zeros appended to queries, keys and values change neither the scores nor the
first columns of the output, so a head of another width is padded to the next one that is fused:
80 (Stable Code 3B) to 96, and on Metal 160 (StableLM 2 12B) to 192; the cache grows by a fifth.

Activations are padded, not weights. Padded rows of q, k, v and padded columns of o are read at
every token: 0.2 x 4 x 2560^2 of 79.3 M weights a layer, which is 6.6 % more (the 3B at any
precision), to save one small kernel a layer. They would also have to be quantised anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

Backend = Literal["metal", "cuda", "cpu"]
# Head widths with a fused attention for one query. Metal: the check in MLX 0.32.4's
# ScaledDotProductAttention::use_fallback and the sdpa_vector kernels of its metallib. CUDA: its
# sdpa_vector kernels; cuDNN serves other widths, but only for caches that are evaluated when the
# graph is built, which a decode step's are not. The CPU computes every width the same way.
FUSED_DECODE_WIDTHS: dict[Backend, tuple[int, ...]] = {
    "metal": (64, 96, 128, 192, 256, 512),
    "cuda": (64, 96, 128),
    "cpu": (),
}


@dataclass(frozen=True)
class Variant:
    """Switches that let one way be held against another.

    Attributes:
        fuse: q, k, v as one matrix product, and gate, up as another.
        pad: heads padded to a width with fused attention: None where the device gains by it,
            False never, True on a CPU too (to Metal's widths; slower there).
    """

    fuse: bool = True
    pad: bool | None = None

    def head_width(self, head_dim: int, backend: Backend | None = None) -> int:
        """How wide a head of `head_dim` is in the attention and its cache.

        Args:
            head_dim: the network's own width.
            backend: what computes; by default MLX's default device.
        """
        if self.pad is False:
            return head_dim
        widths = FUSED_DECODE_WIDTHS[backend or current_backend()]
        if self.pad and not widths:
            widths = FUSED_DECODE_WIDTHS["metal"]
        return min((w for w in widths if w >= head_dim), default=head_dim)


def current_backend() -> Backend:
    """What MLX's default device is."""
    if mx.default_device().type != mx.DeviceType.gpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"

"""KV caches: as computed, or in 8 or 4 bits.

Bytes per position, layer and head of 80 in half precision: 320 as computed (384 padded for the
fused attention), 216 in 8 bits and 120 in 4, both padded to 96 for groups of 32.
"""

from collections.abc import Sequence

import mlx.core as mx
from mlx.utils import tree_flatten

from edge.model.stablelm import Cache, Model

# The largest group that every head of the family can be padded to at little cost.
GROUP_SIZE = 32
# The cache grows by this many positions, or by this share if that is more, since each growth copies
# all of it. Growing 2 layers of 32 heads to 8192 took 1.1 s on a CPU; 1.9 s by 256 each time.
STEP_POSITIONS = 256
GROWTH_SHARE = 1 / 8


class KVCache:
    """Keys and values of one layer as computed, (B, kv_heads, positions, width) each.

    Importing mlx-lm's class of this name takes 1.5 s.
    """

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends keys and values (B, kv_heads, L, width); returns all, in the same layout."""
        before, self.offset = self.offset, self.offset + keys.shape[2]
        self.keys = with_room(self.keys, keys, before, self.offset)
        self.values = with_room(self.values, values, before, self.offset)
        self.keys[..., before : self.offset, :] = keys
        self.values[..., before : self.offset, :] = values
        return self.keys[..., : self.offset, :], self.values[..., : self.offset, :]

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None, int]:
        return self.keys, self.values, self.offset

    def is_trimmable(self) -> bool:
        """True, unlike for mlx-lm's rotating caches."""
        return True

    def trim(self, n: int) -> int:
        """Drops the last n positions, or all; returns how many."""
        n = min(self.offset, n)
        self.offset -= n
        return n


def with_room(
    held: mx.array | None, new: mx.array, kept: int, needed: int, rows: int | None = None
) -> mx.array:
    """The first `kept` positions held, followed by room up to `needed`, for rows like new ones."""
    batch, heads, _, width = new.shape
    if held is not None and needed <= held.shape[2]:
        return held
    steps = -(-max(needed - kept, int(kept * GROWTH_SHARE)) // STEP_POSITIONS)
    room = mx.zeros((rows or batch, heads, steps * STEP_POSITIONS, width), new.dtype)
    return room if held is None else mx.concatenate([held[..., :kept, :], room], axis=2)


def make_cache(model: Model, kv_bits: int | None = None) -> list[Cache]:
    """One empty cache per layer; `kv_bits` of 8 or 4 quantises keys and values."""
    if kv_bits is None:
        return [KVCache() for _ in model.layers]
    # Imported here: the plain cache does not need mlx-lm, which takes long to import.
    from mlx_lm.models.cache import QuantizedKVCache

    return [QuantizedKVCache(group_size=GROUP_SIZE, bits=kv_bits) for _ in model.layers]


def cache_bytes(cache: Sequence[Cache]) -> int:
    """Memory of a cache, room for growth included."""
    held = tree_flatten([(layer.keys, layer.values) for layer in cache])
    return sum(array.nbytes for _, array in held if array is not None)

"""Caches of keys and values for our network: as computed, or in fewer bits.

Per position and layer, heads of 80 in half precision: 320 bytes a head as computed (384 padded
for the fused attention), 216 in 8 bits and 120 in 4, both padded to 96 for groups of 32.
"""

from collections.abc import Sequence

import mlx.core as mx
from mlx.utils import tree_flatten

from edge.errors import EdgeError
from edge.model.stablelm import Cache, Model

KV_BITS = (4, 8)
# The largest group that every head of the family can be padded to at little cost.
GROUP_SIZE = 32
# Room is made for so many positions, or this share of those held if that is more: each growth
# copies all. Growing 2 layers of 32 heads to 8192 positions took 1.1 s on a CPU, by 256 each 1.9 s.
STEP_POSITIONS = 256
GROWTH_SHARE = 1 / 8


class KVCache:
    """Keys and values of one layer as computed, (B, kv_heads, positions, width) each.

    Written again because importing mlx-lm's class of this name takes a second and a half.
    """

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Adds keys and values (B, kv_heads, L, width); all that are held, in the same form."""
        before, self.offset = self.offset, self.offset + keys.shape[2]
        self.keys = _with_room(self.keys, keys, before)
        self.values = _with_room(self.values, values, before)
        self.keys[..., before : self.offset, :] = keys
        self.values[..., before : self.offset, :] = values
        return self.keys[..., : self.offset, :], self.values[..., : self.offset, :]

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None, int]:
        """Keys, values and offset: what there is to evaluate."""
        return self.keys, self.values, self.offset

    @state.setter
    def state(self, state: tuple[mx.array | None, mx.array | None, int]) -> None:
        self.keys, self.values, self.offset = state

    def is_trimmable(self) -> bool:
        """True; mlx-lm's rotating caches are not always."""
        return True

    def trim(self, n: int) -> int:
        """Forgets the last n positions; how many that were."""
        n = min(self.offset, n)
        self.offset -= n
        return n


def _with_room(held: mx.array | None, new: mx.array, before: int) -> mx.array:
    """The first `before` positions of what is held, with room for the new ones after them."""
    batch, heads, count, width = new.shape
    if held is not None and before + count <= held.shape[2]:
        return held
    steps = -(-max(count, int(before * GROWTH_SHARE)) // STEP_POSITIONS)
    room = mx.zeros((batch, heads, steps * STEP_POSITIONS, width), new.dtype)
    return room if held is None else mx.concatenate([held[..., :before, :], room], axis=2)


def make_cache(model: Model, kv_bits: int | None = None) -> list[Cache]:
    """One empty cache per layer; with 8 or 4 bits keys and values are stored quantised."""
    if kv_bits is None:
        return [KVCache() for _ in model.layers]
    if kv_bits not in KV_BITS:
        raise EdgeError(f"A cache of {kv_bits} bits does not exist; use 4, 8, or leave it out.")
    # Imported here: the plain cache does not need mlx-lm, which takes long to import.
    from mlx_lm.models.cache import QuantizedKVCache

    return [QuantizedKVCache(group_size=GROUP_SIZE, bits=kv_bits) for _ in model.layers]


def cache_bytes(cache: Sequence[Cache]) -> int:
    """Memory of the positions held, room for growth included."""
    held = tree_flatten([(layer.keys, layer.values) for layer in cache])
    return sum(array.nbytes for _, array in held if array is not None)

"""Caches of keys and values for our network: as computed, or in fewer bits.

Per position and layer, heads of 80 in half precision: 320 bytes a head as computed (384 padded
for the fused attention), 216 in 8 bits and 120 in 4, both padded to 96 for groups of 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from edge.errors import EdgeError
from edge.model.attention import Cache
from edge.model.stablelm import Model

KV_BITS = (4, 8)
# The largest group that every head of the family can be padded to at little cost.
GROUP_SIZE = 32
# Room is made for so many positions at a time, or for this share of those held if that is more:
# each growth copies all, so steps of one size would copy ever more per position. Growing 2
# layers of 32 heads to 8192 positions took 1.1 s on a CPU, in steps of 256 1.9 s.
STEP_POSITIONS = 256
GROWTH_SHARE = 1 / 8

# Keys and values, (B, kv_heads, positions, width) each, None in an empty cache; and the offset.
State = tuple[mx.array | None, mx.array | None, int]


class KVCache:
    """Keys and values of one layer as computed.

    mlx-lm's class of this name, written again because importing that one takes a second and a
    half: attributes, methods and `state` are the same, so that mlx-lm trims, saves and loads it.
    """

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add keys and values (B, kv_heads, L, width); all that are held, in the same form."""
        before, self.offset = self.offset, self.offset + keys.shape[2]
        self.keys = _with_room(self.keys, keys, before)
        self.values = _with_room(self.values, values, before)
        self.keys[..., before : self.offset, :] = keys
        self.values[..., before : self.offset, :] = values
        return self.keys[..., : self.offset, :], self.values[..., : self.offset, :]

    @property
    def state(self) -> State:
        """What there is to evaluate, or to save."""
        return self.keys, self.values, self.offset

    @state.setter
    def state(self, state: State) -> None:
        self.keys, self.values, self.offset = state

    @classmethod
    def from_state(cls, state: State) -> KVCache:
        """A cache as it was saved."""
        cache = cls()
        cache.state = state
        return cache

    def is_trimmable(self) -> bool:
        """Always."""
        return True

    def trim(self, n: int) -> int:
        """Forget the last n positions; how many that were."""
        n = min(self.offset, n)
        self.offset -= n
        return n

    def size(self) -> int:
        """Positions held."""
        return self.offset

    def empty(self) -> bool:
        """Whether it never held any."""
        return self.keys is None

    @property
    def nbytes(self) -> int:
        """Memory, room for growth included."""
        return sum(array.nbytes for array in (self.keys, self.values) if array is not None)

    def make_mask(
        self, n: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """The causal mask for n new positions, as MLX's attention takes it.

        An array (n, offset + n) of bools where one is asked for or a window bounds the view.
        """
        if window_size is None and (n == 1 or not return_array):
            return None if n == 1 else "causal"
        positions = self.offset + mx.arange(n)[:, None]
        others = mx.arange(self.offset + n)[None]
        mask = others <= positions
        return mask if window_size is None else mask & (others > positions - window_size)

    def to_quantized(self, group_size: int = 64, bits: int = 4) -> Cache:
        """mlx-lm's quantised cache with what this one holds; widths are whole groups."""
        from mlx_lm.models.cache import KVCache as MlxLmCache

        held: Any = MlxLmCache()
        held.state = self.state
        return held.to_quantized(group_size=group_size, bits=bits)


def make_cache(model: Model, kv_bits: int | None = None) -> list[Cache]:
    """One empty cache per layer.

    Args:
        model: what will fill it.
        kv_bits: 8 or 4 to store keys and values quantised; None as they are computed.

    Raises:
        EdgeError: a number of bits that no cache has.
    """
    if kv_bits is None:
        return [KVCache() for _ in model.layers]
    if kv_bits not in KV_BITS:
        raise EdgeError(f"A cache of {kv_bits} bits does not exist; use 4, 8, or leave it out.")
    # Imported here: the plain cache does not need mlx-lm, which takes long to import.
    from mlx_lm.models.cache import QuantizedKVCache

    return [QuantizedKVCache(group_size=GROUP_SIZE, bits=kv_bits) for _ in model.layers]


def cache_bytes(cache: Sequence[Cache]) -> int:
    """Memory of the positions held, room for growth included."""
    return sum(layer.nbytes for layer in cache if not layer.empty())


def _with_room(held: mx.array | None, new: mx.array, before: int) -> mx.array:
    """What is held, its first `before` positions, with room for the new ones after them."""
    b, heads, count, width = new.shape
    if held is not None and before + count <= held.shape[2]:
        return held
    steps = -(-max(count, int(before * GROWTH_SHARE)) // STEP_POSITIONS)
    room = mx.zeros((b, heads, steps * STEP_POSITIONS, width), new.dtype)
    return room if held is None else mx.concatenate([held[..., :before, :], room], axis=2)

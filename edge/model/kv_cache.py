"""Caches of keys and values for our network: as computed, in fewer bits, or of bounded length.

Per position and layer, heads of 80 in half precision: 320 bytes a head as computed (384 padded
for the fused attention), 216 in 8 bits and 120 in 4, both padded to 96 for groups of 32.
"""

from __future__ import annotations

from edge.errors import EdgeError
from edge.model.attention import Cache
from edge.model.stablelm import Model

KV_BITS = (4, 8)
# The largest group that every head of the family can be padded to at little cost.
GROUP_SIZE = 32
# A rotating cache never forgets its first positions, on which trained attention leans whatever
# they hold (Xiao et al. 2023, "attention sinks"); mlx-lm's number.
KEPT_POSITIONS = 4


def make_cache(
    model: Model, kv_bits: int | None = None, max_tokens: int | None = None
) -> list[Cache]:
    """One empty cache per layer.

    Args:
        model: what will fill it.
        kv_bits: 8 or 4 to store keys and values quantised; None as they are computed.
        max_tokens: positions to hold at most. Beyond, the oldest but for the first
            KEPT_POSITIONS are forgotten and the cache can no longer be trimmed; None holds all.

    Raises:
        EdgeError: values that no cache has.
    """
    if kv_bits is not None and kv_bits not in KV_BITS:
        raise EdgeError(f"A cache of {kv_bits} bits does not exist; use 4, 8, or leave it out.")
    if max_tokens is not None and max_tokens <= KEPT_POSITIONS:
        raise EdgeError(
            f"A rotating cache of {max_tokens} positions would hold only the {KEPT_POSITIONS} "
            f"that it always keeps; use {KEPT_POSITIONS + 1} or more."
        )
    if kv_bits is not None and max_tokens is not None:
        raise EdgeError(
            "A rotating cache cannot be quantised in mlx-lm; use fewer bits or a bounded length, "
            "not both."
        )
    return [_one(kv_bits, max_tokens) for _ in model.layers]


def cache_bytes(cache: list[Cache]) -> int:
    """Memory of the positions held, room for growth included."""
    return sum(layer.nbytes for layer in cache if not layer.empty())


def _one(kv_bits: int | None, max_tokens: int | None) -> Cache:
    # Imported here: the network alone does not need mlx-lm, which takes long to import.
    from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

    if kv_bits is not None:
        return QuantizedKVCache(group_size=GROUP_SIZE, bits=kv_bits)
    if max_tokens is not None:
        return RotatingKVCache(max_size=max_tokens, keep=KEPT_POSITIONS)
    return KVCache()

"""Attention over a cache of any kind: plain, rotating or quantised, its heads padded or not."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

# One layer's keys and values: ours (`edge.model.kv_cache`) or any of mlx-lm's classes. Has
# `offset`, `state`, `update_and_fetch`, `is_trimmable` and `trim`, and may have `make_mask`.
Cache = Any
# With more queries than this a quantised cache is dequantised first, one layer at a time: it is
# then read once for many queries, and the fused attention keeps no scores (2048 queries on 8192
# positions of 32 heads would be a gigabyte of them). MLX's own limit for its decode kernel.
FEW_QUERIES = 8


def stored_width(width: int, cache: Cache | None) -> int:
    """How wide the heads must be for a cache: a quantised one stores whole groups."""
    group_size = getattr(cache, "group_size", None)
    return width if group_size is None else -(-width // group_size) * group_size


def padded(x: mx.array, width: int) -> mx.array:
    """X (..., head_dim) -> (..., width), filled with zeros."""
    missing = width - x.shape[-1]
    return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    cache: Cache | None,
    scale: float,
    mask: mx.array | str | None,
) -> mx.array:
    """Extend the cache by k and v, and attend to all that it holds.

    Queries and keys stay in their dtype: the fused attention accumulates in float32 anyway,
    and a cast would rewrite the whole key cache at every token.

    Args:
        q: (B, heads, L, width).
        k: (B, kv_heads, L, width), as v; the cache holds the positions before.
        v: the values.
        cache: one layer's, or None.
        scale: of the scores; padding does not change it.
        mask: as MLX's scaled_dot_product_attention takes it.

    Returns:
        (B, heads, L, width).
    """
    if cache is None:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    keys, values = cache.update_and_fetch(k, v)
    if hasattr(cache, "bits"):
        if q.shape[2] <= FEW_QUERIES:
            return _attend_to_codes(q, keys, values, cache, scale, mask)
        keys, values = _dequantised(keys, cache), _dequantised(values, cache)
    return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=mask)


def _attend_to_codes(
    q: mx.array, keys: Any, values: Any, cache: Cache, scale: float, mask: mx.array | str | None
) -> mx.array:
    from mlx_lm.models.base import quantized_scaled_dot_product_attention

    out: mx.array = quantized_scaled_dot_product_attention(
        q, keys, values, scale, mask, group_size=cache.group_size, bits=cache.bits
    )
    return out


def _dequantised(parts: tuple[mx.array, mx.array, mx.array], cache: Cache) -> mx.array:
    return mx.dequantize(*parts, group_size=cache.group_size, bits=cache.bits)

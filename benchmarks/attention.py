"""Times the attention step against that of mlx-lm's StableLM, in one process with one BLAS.

    python benchmarks/attention.py --depth 8192

A step is one new token: its keys and values go into the cache, its query attends to all.
mlx-lm casts the query and the whole key cache to float32 first, ours does not. Ours is timed
without padding, padded as for Metal, and with quantised caches. The order rotates from round to
round. Prints medians and ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import edge  # noqa: F401  before MLX, which it prepares

# isort: split
import mlx.core as mx
from apart import in_turn
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from edge.model.kv_cache import GROUP_SIZE
from edge.model.stablelm import attend, head_width, padded, stored_width


def step_ours(inputs: Sequence[mx.array], width: int, cache: Any) -> None:
    """Attention of one token as in our network."""
    head_dim = inputs[0].shape[-1]
    q, k, v = (padded(t, stored_width(width, cache)) for t in inputs)
    mx.eval(attend(q, k, v, cache, head_dim**-0.5, None)[..., :head_dim])
    cache.trim(1)


def step_theirs(inputs: Sequence[mx.array], cache: Any) -> None:
    """Attention of one token as in `mlx_lm/models/stablelm.py`."""
    q, k, v = inputs
    k, v = cache.update_and_fetch(k, v)
    q, k = q.astype(mx.float32), k.astype(mx.float32)
    out = scaled_dot_product_attention(
        q, k, v, cache=cache, scale=inputs[0].shape[-1] ** -0.5, mask=None
    )
    mx.eval(out.astype(v.dtype))
    cache.trim(1)


def attention_steps(args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """The timed steps by name; each has its own cache with the same contents."""
    mx.random.seed(0)
    dtype = getattr(mx, args.dtype)

    def heads(length: int) -> mx.array:
        return mx.random.normal((1, args.heads, length, args.head_dim)).astype(dtype)

    past, step = (heads(args.depth), heads(args.depth)), (heads(1), heads(1), heads(1))
    mx.eval(past, step)
    wide = head_width(args.head_dim, "metal")

    def filled(cache: Any, width: int) -> Any:
        cache.update_and_fetch(*(padded(t, stored_width(width, cache)) for t in past))
        mx.eval(cache.keys, cache.values)
        return cache

    def ours(width: int, cache: Any) -> Callable[[], None]:
        return partial(step_ours, step, width, filled(cache, width))

    return {
        "mlx-lm": partial(step_theirs, step, filled(KVCache(), args.head_dim)),
        "edge": ours(args.head_dim, KVCache()),
        f"edge, padded to {wide}": ours(wide, KVCache()),
        "edge, 8-bit cache": ours(args.head_dim, QuantizedKVCache(GROUP_SIZE, 8)),
        "edge, 4-bit cache": ours(args.head_dim, QuantizedKVCache(GROUP_SIZE, 4)),
    }


def _timed_s(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def report(title: str, seconds: Mapping[str, Sequence[float]], peer: str = "mlx-lm") -> None:
    """Prints per step the median, its spread, and how many times as fast as the peer it is."""
    print(title)
    base = statistics.median(seconds[peer])
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median
        print(f"  {name:24} {median * 1e3:9.3f} ms  spread {spread:4.0%}  {base / median:5.2f} x")


def main() -> None:
    """Parses, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--head-dim", type=int, default=80)
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    steps = {name: partial(_timed_s, call) for name, call in attention_steps(args).items()}
    shape = f"{args.heads} heads of {args.head_dim}, depth {args.depth}, {args.dtype}"
    report(f"attention step, {shape}:", in_turn(steps, args.rounds))


if __name__ == "__main__":
    main()

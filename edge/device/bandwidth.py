"""Memory bandwidth: how fast this machine's processor reads and writes main memory.

Two kernels over the same three arrays, on one thread per core, the best of several passes each:

- triad, STREAM's `a = b + s * c`, counted as STREAM counts: three arrays' bytes per pass. The
  memory really moves four, because most processors read a line before they overwrite it.
- read, the maximum over every element: nothing is written, every byte counted is a byte moved.

Decoding reads weights and writes next to nothing, so its ceiling is the better of the two; with
the triad alone a good engine would seem to reach 130 %. NumPy works on pieces that stay in the
second-level cache, so the intermediate `s * c` never travels, and releases the GIL.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from edge.device.chips import last_level_cache_bytes

Arrays = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

PIECE = 1 << 14  # elements: 128 KiB, in the second-level cache of every processor since 2010
# STREAM wants arrays four times the caches. The largest servers' would take seconds to fill.
SMALLEST_TOTAL, LARGEST_TOTAL = 192 << 20, 384 << 20
MIN_PASSES = 3


@dataclass(frozen=True)
class Measured:
    """Both kernels' bytes per second; `cache_multiple`: the arrays' size over the cache's."""

    triad_bytes_s: float
    read_bytes_s: float
    threads: int
    total_bytes: int
    passes: int
    cache_multiple: float | None

    def __str__(self) -> str:
        kernel = "read" if self.read_bytes_s >= self.triad_bytes_s else "triad"
        times = f", {self.cache_multiple:.1f} times the cache" if self.cache_multiple else ""
        return (
            f"measured {kernel}, best of {self.passes} passes, {self.threads} threads, "
            f"{self.total_bytes / 2**20:.0f} MiB{times}; triad {self.triad_bytes_s / 1e9:.1f} GB/s"
        )


def measure_bandwidth(
    threads: int, total_bytes: int | None = None, budget_s: float = 0.4
) -> Measured:
    """Measure for about `budget_s`, after filling three arrays of `total_bytes` together."""
    cache = last_level_cache_bytes()
    total = total_bytes or _suitable_total(cache)
    with ThreadPoolExecutor(threads) as pool:
        shares = list(pool.map(_fill, [total // 24 // threads] * threads))
        moved = 24 * sum(len(share[0]) for share in shares)
        best = {_triad: float("inf"), _read: float("inf")}
        end_s, passes = time.perf_counter() + budget_s, 0
        while passes < MIN_PASSES or time.perf_counter() < end_s:
            for kernel in best:
                begin_s = time.perf_counter()
                list(pool.map(kernel, shares))
                best[kernel] = min(best[kernel], time.perf_counter() - begin_s)
            passes += 1
    multiple = moved / cache if cache else None
    return Measured(moved / best[_triad], moved / best[_read], threads, moved, passes, multiple)


def _suitable_total(cache_bytes: int | None) -> int:
    wanted = min(max(4 * (cache_bytes or 0), SMALLEST_TOTAL), LARGEST_TOTAL)
    return min(wanted, psutil.virtual_memory().available // 4)


def _fill(elements: int) -> Arrays:
    """One thread's part of the three arrays, touched by the thread that will use it."""
    size = max(elements // PIECE, 1) * PIECE
    return np.full(size, 0.0), np.full(size, 1.0), np.full(size, 2.0)


def _triad(arrays: Arrays) -> None:
    a, b, c = arrays
    scaled = np.empty(PIECE)
    for begin in range(0, len(a), PIECE):
        piece = slice(begin, begin + PIECE)
        np.multiply(c[piece], 3.0, out=scaled)
        np.add(b[piece], scaled, out=a[piece])


def _read(arrays: Arrays) -> None:
    for array in arrays:
        np.max(array.view(np.int64))  # integers compare in one instruction, NaN or not

"""Memory bandwidth of the CPU, measured.

Two kernels over the same three arrays, one thread per core, the best of several passes:

- triad, STREAM's `a = b + s * c`, counted as STREAM does: three arrays' bytes per pass. Memory
  moves four, because most processors read a line before they overwrite it.
- read, the maximum over every element.

Decoding writes almost nothing, so its ceiling is the better of the two: an engine can reach 130 %
of the triad. NumPy works on pieces that fit in the second-level cache, and releases the GIL.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
from numpy.typing import NDArray

from edge.device.chips import OVERRIDE, last_level_cache_bytes
from edge.errors import EdgeError

Arrays = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

PIECE = 1 << 14  # elements: 128 KiB, in the second-level cache of every processor since 2010
# STREAM asks for arrays of four times the caches; smaller ones measure the cache.
CACHES = 4
SMALLEST_TOTAL_BYTES = 192 << 20
MIN_PASSES, BUDGET_S = 3, 0.4


def measure_bandwidth(threads: int) -> tuple[float, str]:
    """Bytes per second of the better kernel, measured for about BUDGET_S, and how.

    An EdgeError where memory has no room for arrays that the cache cannot hold.
    """
    cache_bytes = last_level_cache_bytes()
    total_bytes = max(CACHES * (cache_bytes or 0), SMALLEST_TOTAL_BYTES)
    if total_bytes > psutil.virtual_memory().available // 2:
        raise EdgeError(
            f"the memory bandwidth was not measured: {total_bytes / 1e6:.0f} MB, {CACHES} times "
            f"the cache, need twice as much free memory; close other programs, or {OVERRIDE}"
        )
    with ThreadPoolExecutor(threads) as pool:
        shares = list(pool.map(_fill, [-(-total_bytes // 24 // threads)] * threads))
        moved = 24 * sum(len(share[0]) for share in shares)
        best = {_triad: float("inf"), _read: float("inf")}
        end_s, passes = time.perf_counter() + BUDGET_S, 0
        while passes < MIN_PASSES or time.perf_counter() < end_s:
            for kernel in best:
                begin_s = time.perf_counter()
                list(pool.map(kernel, shares))
                best[kernel] = min(best[kernel], time.perf_counter() - begin_s)
            passes += 1
    triad, read = moved / best[_triad], moved / best[_read]
    times = f", {moved / cache_bytes:.1f} times the cache" if cache_bytes else ""
    how = (
        f"measured {'read' if read >= triad else 'triad'}, best of {passes} passes, "
        f"{threads} threads, {moved / 2**20:.0f} MiB{times}; triad {triad / 1e9:.1f} GB/s"
    )
    return max(read, triad), how


def _fill(elements: int) -> Arrays:
    """One thread's part of the three arrays, first written by the thread that uses it."""
    size = -(-elements // PIECE) * PIECE  # rounded up
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

"""Memory bandwidth: how fast this machine's processor reads and writes main memory.

Two kernels over the same three arrays, on one thread per core, the best of several passes each:

- triad, STREAM's `a = b + s * c`, counted as STREAM counts: three arrays' bytes per pass. The
  memory really moves four, because most processors read a line before they overwrite it.
- read, the maximum over every element: nothing is written, every byte counted is a byte moved.

Decoding reads weights and writes next to nothing, so its ceiling is the better of the two; with
the triad alone a good engine would be accused of reaching 130 %. NumPy works on pieces that stay
in the second-level cache, so the intermediate `s * c` never travels, and releases the GIL.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from edge.device.system import text_of

Array = NDArray[np.float64]

CPU_ROOT = Path("/sys/devices/system/cpu")
PIECE = 1 << 14  # elements: 128 KiB, in the second-level cache of every processor since 2010
# STREAM wants arrays four times the caches. The largest servers' would take seconds to fill.
SMALLEST_TOTAL, LARGEST_TOTAL = 192 << 20, 384 << 20
MIN_PASSES = 3
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Measured:
    """Bytes per second of both kernels, and how they came about.

    `cache_multiple` is the size of the arrays together as a multiple of the last-level cache,
    None where its size is unknown; below 1 the figures may be of the cache.
    """

    triad_bytes_s: float
    read_bytes_s: float
    threads: int
    total_bytes: int
    passes: int
    cache_multiple: float | None

    @property
    def bytes_s(self) -> float:
        """The better of the two: what decoding can hope for."""
        return max(self.triad_bytes_s, self.read_bytes_s)

    @property
    def method(self) -> str:
        """How it was measured, in words."""
        size = f"{self.total_bytes / 2**20:.0f} MiB"
        times = f", {self.cache_multiple:.1f} times the cache" if self.cache_multiple else ""
        return f"best of {self.passes} passes, {self.threads} threads, {size}{times}"


def measure_bandwidth(
    threads: int,
    total_bytes: int | None = None,
    budget_s: float = 0.4,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Measure for about `budget_s`, after some 0.2 s of filling memory.

    Args:
        threads: how many work at once; one per physical core.
        total_bytes: size of the three arrays together; by default from the cache's size.
        budget_s: no new pass begins after this time.
        clock: seconds.
    """
    cache = last_level_cache_bytes()
    total = total_bytes or _suitable_total(cache)
    with ThreadPoolExecutor(threads) as pool:
        shares = list(pool.map(_fill, [total // 24 // threads] * threads))
        moved = 24 * sum(len(share[0]) for share in shares)
        best = {_triad: float("inf"), _read: float("inf")}
        end_s, passes = clock() + budget_s, 0
        while passes < MIN_PASSES or clock() < end_s:
            for kernel in best:
                begin_s = clock()
                list(pool.map(kernel, shares))
                best[kernel] = min(best[kernel], clock() - begin_s)
            passes += 1
    return Measured(
        triad_bytes_s=moved / best[_triad],
        read_bytes_s=moved / best[_read],
        threads=threads,
        total_bytes=moved,
        passes=passes,
        cache_multiple=moved / cache if cache else None,
    )


def last_level_cache_bytes(root: Path = CPU_ROOT) -> int | None:
    """Size of the largest cache, all its copies together; None where nothing tells."""
    largest, copies = 0, set[str]()
    for index in root.glob("cpu[0-9]*/cache/index*"):
        size = _bytes(text_of(index / "size") or "")
        shared = text_of(index / "shared_cpu_list") or index.parent.parent.name
        if size > largest:
            largest, copies = size, {shared}
        elif size == largest:
            copies.add(shared)
    return largest * len(copies) or None


def _bytes(text: str) -> int:
    """A size as the kernel writes it: "32768K"; 0 if it is none."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    return int(match[1]) * UNITS[match[2]] if match else 0


def _suitable_total(cache_bytes: int | None) -> int:
    wanted = min(max(4 * (cache_bytes or 0), SMALLEST_TOTAL), LARGEST_TOTAL)
    return min(wanted, psutil.virtual_memory().available // 4)


def _fill(elements: int) -> tuple[Array, Array, Array]:
    """One thread's part of the three arrays, touched by the thread that will use it."""
    size = max(elements // PIECE, 1) * PIECE
    return np.full(size, 0.0), np.full(size, 1.0), np.full(size, 2.0)


def _triad(arrays: tuple[Array, Array, Array]) -> None:
    a, b, c = arrays
    scaled = np.empty(PIECE)
    for begin in range(0, len(a), PIECE):
        piece = slice(begin, begin + PIECE)
        np.multiply(c[piece], 3.0, out=scaled)
        np.add(b[piece], scaled, out=a[piece])


def _read(arrays: tuple[Array, Array, Array]) -> None:
    for array in arrays:
        np.max(array.view(np.int64))  # integers compare in one instruction, NaN or not

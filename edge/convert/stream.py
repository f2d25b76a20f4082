"""One pass over a checkpoint's tensors that writes every artefact at once.

Threads read and encode blocks of rows (numpy and MLX release the GIL) and the blocks are written
in order. Memory holds a few blocks, whatever the size of the model.
"""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from math import prod
from typing import TypeVar

import numpy as np

from edge.convert.checkpoint import Checkpoint
from edge.convert.sources.weights import Array, Packed, Shape
from edge.errors import EdgeError
from edge.model.tensors import expected_shapes

BLOCK_NUMBERS = 1 << 20  # 4 MB of float32
MAX_THREADS = 8
FLOATS = {"F32": ("float32", float(np.finfo(np.float32).max)), "F16": ("float16", 65504.0)}
T = TypeVar("T")


class Block:
    """Consecutive rows of a tensor, each float type computed once.

    An EdgeError if a value is not finite, or a type cannot hold it.
    """

    def __init__(self, name: str, values: Array):
        self.name = name
        self._values = values
        self._rounded: dict[str, Array] = {}
        # NaN or infinite if a value is.
        self._largest = float(max(values.max(), -values.min())) if values.size else 0.0
        if not np.isfinite(self._largest):
            raise EdgeError(
                f"tensor {name} holds values that are not finite; the checkpoint is damaged or "
                f"diverged, so download it again or choose another."
            )

    def rounded(self, dtype: str) -> Array:
        """The rows as F32, F16 or BF16 (its bits in uint16)."""
        if dtype not in self._rounded:
            self._rounded[dtype] = self._bfloat16() if dtype == "BF16" else self._float(dtype)
        return self._rounded[dtype]

    def _bfloat16(self) -> Array:
        """Ties go to even."""
        bits = self.rounded("F32").view(np.uint32)
        even = (bits >> 16) & 1
        return ((bits + (0x7FFF + even)) >> 16).astype(np.uint16)

    def _float(self, name: str) -> Array:
        dtype, limit = FLOATS[name]
        if self._largest > limit:
            raise EdgeError(
                f"tensor {self.name} has values that {dtype} cannot hold (largest "
                f"{self._largest:g}); the checkpoint is damaged or diverged, so download it again "
                f"or choose another."
            )
        return np.ascontiguousarray(self._values, dtype)


class Writer(ABC):
    """Writes one artefact from tensors in the order of `expected_shapes`."""

    def takes_packed(self, name: str) -> bool:
        """True if the tensor is kept as the source has it quantised."""
        return False

    def append_packed(self, name: str, packed: Packed) -> None:
        """Write a whole tensor as the source has it."""
        raise NotImplementedError

    @abstractmethod
    def encode(self, block: Block) -> Sequence[Array]:
        """Rows as they are stored. Called from any thread."""

    @abstractmethod
    def append(self, name: str, encoded: Sequence[Array], last: bool) -> None:
        """Write encoded rows in order; `last` of their tensor."""

    @abstractmethod
    def finish(self) -> tuple[dict[str, str], list[str]]:
        """Complete all but the manifest; SHA-256 by file name, and notes on the result."""

    @abstractmethod
    def close(self) -> None:
        """Close files."""


def stream(
    checkpoint: Checkpoint, writers: Sequence[Writer], progress: Callable[[float], None]
) -> None:
    """Give every tensor to every writer; `progress` takes the finished fraction, 0 to 1."""
    shapes = expected_shapes(checkpoint.config)
    total, done = sum(map(prod, shapes.values())), 0
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        for name, shape in shapes.items():
            progress(done / total)
            kept = [writer for writer in writers if writer.takes_packed(name)]
            if kept:
                packed = checkpoint.weights.read_packed(name)
                for writer in kept:
                    writer.append_packed(name, packed)
            rounded = [writer for writer in writers if writer not in kept]
            if rounded:
                _stream_rows(checkpoint, rounded, name, shape, threads)
            done += prod(shape)
    progress(1.0)


def blocks(shape: Shape) -> Iterator[tuple[int, int]]:
    """First row and end of every block of a tensor."""
    step = max(1, BLOCK_NUMBERS // prod(shape[1:]))
    for start in range(0, shape[0], step):
        yield start, min(shape[0], start + step)


def _stream_rows(
    checkpoint: Checkpoint, writers: Sequence[Writer], name: str, shape: Shape, threads: Executor
) -> None:
    def encode(start: int, stop: int) -> tuple[bool, list[Sequence[Array]]]:
        block = Block(name, checkpoint.weights.read(name, start, stop))
        return stop == shape[0], [writer.encode(block) for writer in writers]

    jobs = (threads.submit(encode, start, stop) for start, stop in blocks(shape))
    for last, encoded in _in_order(jobs, MAX_THREADS):
        for writer, rows in zip(writers, encoded, strict=True):
            writer.append(name, rows, last)


def _in_order(jobs: Iterable[Future[T]], ahead: int) -> Iterator[T]:
    """Results in order, with no more than `ahead` of them finished or under way."""
    waiting: deque[Future[T]] = deque()
    try:
        for job in jobs:
            waiting.append(job)
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for job in waiting:
            job.cancel()

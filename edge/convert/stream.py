"""The one pass over a checkpoint's tensors that feeds every artefact at once.

Blocks of rows are read and encoded by a few threads (numpy and MLX let go of the
interpreter while they compute) and written in order. What is in memory is a handful
of blocks, whatever the size of the model.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from math import prod
from typing import TypeVar

from edge.convert.artefacts.block import Block
from edge.convert.artefacts.writer import ArtefactWriter, Encoded
from edge.convert.checkpoint import Checkpoint
from edge.convert.sources.weights import Shape
from edge.model.tensors import expected_shapes

BLOCK_NUMBERS = 1 << 20  # 4 MB of float32
MAX_THREADS = 8
T = TypeVar("T")


def stream(
    checkpoint: Checkpoint,
    writers: Sequence[ArtefactWriter],
    progress: Callable[[float], None],
) -> None:
    """Give every tensor to every writer.

    Args:
        checkpoint: what to read, once.
        writers: who takes the tensors.
        progress: told the finished fraction, 0 to 1.

    Raises:
        EdgeError: a weight is not finite, or too large for a writer's type.
    """
    shapes = expected_shapes(checkpoint.config)
    total, done = sum(prod(shape) for shape in shapes.values()), 0
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        for name, shape in shapes.items():
            progress(done / total)
            as_it_is = [w for w in writers if w.takes_packed(name)]
            if as_it_is:
                packed = checkpoint.weights.read_packed(name)
                for writer in as_it_is:
                    writer.append_packed(name, packed)
            rounded = [w for w in writers if w not in as_it_is]
            if rounded:
                _stream_rows(checkpoint, rounded, name, shape, threads)
            for writer in writers:
                writer.end_tensor(name)
            done += prod(shape)
    progress(1.0)


def blocks(shape: Shape) -> Iterator[tuple[int, int]]:
    """First row and end of every block of a tensor."""
    step = max(1, BLOCK_NUMBERS // prod(shape[1:]))
    for start in range(0, shape[0], step):
        yield start, min(shape[0], start + step)


def _stream_rows(
    checkpoint: Checkpoint,
    writers: Sequence[ArtefactWriter],
    name: str,
    shape: Shape,
    threads: Executor,
) -> None:
    def encode(start: int, stop: int) -> list[Encoded]:
        block = Block(name, checkpoint.weights.read(name, start, stop))
        return [writer.encode(block) for writer in writers]

    jobs = (threads.submit(encode, start, stop) for start, stop in blocks(shape))
    for encoded in _in_order(jobs, MAX_THREADS):
        for writer, rows in zip(writers, encoded, strict=True):
            writer.append(name, rows)


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

"""Write safetensors files whose tensors arrive in pieces, hashing on the way.

Every shape is planned before the first byte, so headers, shard names and the index
are known from the start and no tensor waits in memory for its shard to fill.
Format: an unsigned 64-bit header length, a JSON header, the data without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.convert.sources.companions import INDEX
from edge.convert.sources.weights import Array, Shape

SHARD_BYTES = 5 << 30  # what mlx-lm and the hub use
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "U8": 1}
# Readers that map the file want the data aligned; the reference writer pads to 8 too.
ALIGNMENT_BYTES = 8


@dataclass(frozen=True)
class Planned:
    """One tensor that will be written."""

    name: str
    dtype: str
    shape: Shape

    @property
    def data_bytes(self) -> int:
        """Its size on disk."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class SafetensorsWriter:
    """A folder's model*.safetensors and their index.

    Tensors must arrive whole and in the planned order; `write` extends the current one.
    """

    def __init__(self, folder: Path, plan: Sequence[Planned]):
        self._folder = folder
        self._shards = split_into_shards(plan)
        self._names = shard_names(len(self._shards))
        self._next = 0
        self._left_bytes = 0  # of the open shard
        self._tensors = iter(plan)
        self._tensor_left_bytes = 0
        self.sha256: dict[str, str] = {}

    def write(self, data: Array) -> None:
        """Append bytes of the tensor whose turn it is.

        Raises:
            ValueError: it has fewer bytes left, or all tensors have arrived.
        """
        raw = raw_bytes(data)
        if not self._left_bytes:
            if self._next == len(self._shards):
                raise ValueError(f"{len(raw)} bytes more than were planned")
            self._open_next()
        if not self._tensor_left_bytes:
            self._tensor_left_bytes = next(self._tensors).data_bytes
        if len(raw) > self._tensor_left_bytes:
            raise ValueError(f"{len(raw) - self._tensor_left_bytes} bytes more than were planned")
        self._tensor_left_bytes -= len(raw)
        self._left_bytes -= len(raw)
        self._file.write(raw)
        self._digest.update(raw)
        if not self._left_bytes:
            self._close()

    def finish(self) -> None:
        """Write the index.

        Raises:
            ValueError: a planned tensor has not arrived.
        """
        if self._left_bytes or self._next < len(self._shards):
            raise ValueError("planned tensors are missing")
        total = sum(tensor.data_bytes for shard in self._shards for tensor in shard)
        weight_map = {
            tensor.name: name
            for name, shard in zip(self._names, self._shards, strict=True)
            for tensor in shard
        }
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = (json.dumps(index, indent=2) + "\n").encode()
        (self._folder / INDEX).write_bytes(text)
        self.sha256[INDEX] = hashlib.sha256(text).hexdigest()

    def close(self) -> None:
        """Let go of an unfinished file."""
        if self._left_bytes:
            self._file.close()

    def _open_next(self) -> None:
        shard = self._shards[self._next]
        self._file = (self._folder / self._names[self._next]).open("wb")
        self._digest = hashlib.sha256()
        head = header(shard)
        self._file.write(head)
        self._digest.update(head)
        self._left_bytes = sum(tensor.data_bytes for tensor in shard)

    def _close(self) -> None:
        self._file.close()
        self.sha256[self._names[self._next]] = self._digest.hexdigest()
        self._next += 1


def split_into_shards(plan: Sequence[Planned]) -> list[list[Planned]]:
    """Consecutive tensors, none but a single tensor's shard over the limit."""
    shards: list[list[Planned]] = [[]]
    room = SHARD_BYTES
    for tensor in plan:
        if shards[-1] and tensor.data_bytes > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(tensor)
        room -= tensor.data_bytes
    return shards


def shard_names(count: int) -> list[str]:
    """Hugging Face's names, which hold the count."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def raw_bytes(array: Array) -> memoryview:
    """An array's bytes in row order, without a copy if they lie so."""
    flat: Any = np.ascontiguousarray(array)
    return memoryview(flat).cast("B")


def header(tensors: Sequence[Planned]) -> bytes:
    """The file's first bytes, up to the data."""
    fields: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.data_bytes
        entry: Mapping[str, object] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        fields[tensor.name] = entry
        offset = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text

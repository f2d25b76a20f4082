"""Safetensors: headers checked, tensors read in blocks of rows, shards written.

Format: an unsigned 64-bit header length, a JSON header {name: {dtype, shape, data_offsets}},
then the data without gaps. The safetensors package is not used: numpy has no bfloat16, and it
does not say how many bytes an incomplete download lacks. Rows are read, not mapped, since pages
of a mapped file count as resident memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edge.errors import EdgeError
from edge.formats.files import open_file, strict_json

if TYPE_CHECKING:
    import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Shape = tuple[int, ...]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"  # which file holds which tensor
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# Codes and input orders of quantised checkpoints.
INTEGERS = {"I64": "<i8", "I32": "<i4", "U32": "<u4", "U8": "<u1"}
NUMPY_TYPES = FLOATS | INTEGERS
ITEM_BYTES = {dtype: int(kind[-1]) for dtype, kind in NUMPY_TYPES.items()}
MAX_HEADER_BYTES = 100_000_000  # as the reference implementation
MAX_AXES = 8  # limits how long a product of sizes takes
SHARD_BYTES = 5 << 30  # as mlx-lm and the hub
CUT_OFF = "has been cut off since it was opened"
ALIGNMENT_BYTES = 8  # of the data, for readers that map the file; as the reference writer


@dataclass(frozen=True)
class Planned:
    """One tensor by name, type and shape."""

    name: str
    dtype: str
    shape: Shape

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class StoredTensor(Planned):
    """One tensor of a file."""

    path: Path
    begin: int  # from the start of the file

    def check_is_float(self) -> None:
        """An EdgeError for integers where weights belong."""
        if self.dtype not in FLOATS:
            raise EdgeError(
                f"{self.path}: tensor {self.name} is stored as {self.dtype}, not as a float; "
                f"use the unquantised checkpoint."
            )

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Rows start to stop, clipped as in a slice; bfloat16 widened to float32."""
        rows, *axes = self.shape or (1,)
        first, last, _ = slice(start, stop).indices(rows)
        count, width = max(0, last - first), math.prod(axes)
        begin = self.begin + first * width * ITEM_BYTES[self.dtype]
        stored = read_array(self.path, NUMPY_TYPES[self.dtype], count * width, begin)
        stored = self._widened(stored)
        return stored.reshape(count, *axes) if self.shape else stored.reshape(())

    def read_columns(self, start: int, stop: int) -> Array:
        """Columns start to stop of a matrix, as `read`; the others are not read."""
        import numpy as np

        (rows, columns), kind = self.shape, NUMPY_TYPES[self.dtype]
        item_bytes, width = ITEM_BYTES[self.dtype], stop - start
        stored = np.empty((rows, width), kind)
        with open_file(self.path) as file:
            for row in range(rows):
                file.seek(self.begin + (row * columns + start) * item_bytes)
                found = file.read(width * item_bytes)
                if len(found) < width * item_bytes:
                    raise _broken(self.path, CUT_OFF)
                stored[row] = np.frombuffer(found, kind)
        return self._widened(stored)

    def _widened(self, stored: Array) -> Array:
        if self.dtype != "BF16":
            return stored
        wide = stored.astype("<u4")
        wide <<= 16
        return wide.view("<f4")


def read_array(path: Path, dtype: str, count: int, begin: int) -> Array:
    """Numbers (count,) of a file from byte `begin` on."""
    import numpy as np  # here: reading headers alone need not wait 0.1 s for it

    with open_file(path) as file:
        numbers = np.fromfile(file, dtype, count, offset=begin)
    if numbers.size < count:
        raise _broken(path, CUT_OFF)
    return numbers


def read_headers(paths: Iterable[Path]) -> dict[str, StoredTensor]:
    """Tensors of several files by name; an EdgeError if a name is in two files."""
    found: dict[str, StoredTensor] = {}
    for path in paths:
        for name, tensor in read_header(path).items():
            if name in found:
                raise EdgeError(
                    f"tensor {name} is in {found[name].path} and in {path}; "
                    f"keep the files of one checkpoint only."
                )
            found[name] = tensor
    return found


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Tensors of a file by name, checked against the file's size."""
    with open_file(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 + header_bytes:
            raise _broken(path, f"is cut off inside its header ({file_bytes} bytes)")
        if header_bytes > MAX_HEADER_BYTES:
            raise _broken(path, f"claims a header of {header_bytes} bytes")
        raw = file.read(header_bytes)
    try:
        header = strict_json(raw)
        metadata = header.pop("__metadata__", None)  # MLX writes null for none
        if metadata is not None and not all(isinstance(t, str) for t in metadata.values()):
            raise ValueError(metadata)
        tensors = [_entry(path, name, header[name], 8 + header_bytes) for name in header]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _broken(path, "has a header that is not safetensors") from None
    _check_layout(path, tensors, 8 + header_bytes, file_bytes)
    return {tensor.name: tensor for tensor in tensors}


def _entry(path: Path, name: str, fields: dict[str, Any], data_begin: int) -> StoredTensor:
    dtype, shape = fields["dtype"], fields["shape"]
    begin, end = fields["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise EdgeError(
            f"{path}: tensor {name} is stored as {dtype}, edge reads {', '.join(ITEM_BYTES)}; "
            f"use the unquantised checkpoint."
        )
    sizes = (begin, end, *shape)
    if len(sizes) > MAX_AXES or not all(type(n) is int and 0 <= n < 1 << 63 for n in sizes):
        raise ValueError(name)
    tensor = StoredTensor(name, dtype, tuple(shape), path, data_begin + begin)
    if end - begin != tensor.data_bytes:
        raise _broken(path, f"gives tensor {name} {end - begin} bytes for shape {shape}")
    return tensor


def _check_layout(path: Path, tensors: list[StoredTensor], begin: int, file_bytes: int) -> None:
    """An EdgeError unless tensors fill the data without a gap or overlap."""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.data_bytes)):
        if tensor.begin != begin:
            raise _broken(path, f"has tensor {tensor.name} overlapping or after a gap")
        begin += tensor.data_bytes
    if begin > file_bytes:
        raise _broken(path, f"is cut off: {file_bytes} bytes of {begin}")
    if begin < file_bytes:
        raise _broken(path, f"has {file_bytes - begin} extra bytes")


def _broken(path: Path, reason: str) -> EdgeError:
    return EdgeError(f"{path} {reason}; download it again.")


class ShardWriter:
    """Writes a folder's model*.safetensors and their index, and hashes them.

    Shapes are planned before the first byte, so that no tensor waits in memory for its shard to
    fill. Data must arrive in the planned order.
    """

    def __init__(self, folder: Path, plan: Sequence[Planned]):
        self._folder = folder
        shards = split_into_shards(plan)
        names = [SINGLE]
        if (count := len(shards)) > 1:
            names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        self._shards = dict(zip(names, shards, strict=True))
        self._waiting = list(reversed(self._shards))
        self._left_bytes = 0  # of the open shard
        self.sha256: dict[str, str] = {}

    def write(self, data: Array) -> None:
        """Append bytes of the next tensor; a ValueError if they are more than planned."""
        raw = raw_bytes(data)
        if not self._left_bytes and self._waiting:
            self._open(self._waiting.pop())
        if len(raw) > self._left_bytes:
            raise ValueError(f"{len(raw) - self._left_bytes} bytes more than were planned")
        self._left_bytes -= len(raw)
        self._put(raw)
        if not self._left_bytes:
            self._file.close()
            self.sha256[self._name] = self._digest.hexdigest()

    def finish(self) -> None:
        """Write the index; a ValueError if a planned tensor is missing."""
        if self._left_bytes or self._waiting:
            raise ValueError("planned tensors are missing")
        total = sum(tensor.data_bytes for shard in self._shards.values() for tensor in shard)
        files = {tensor.name: name for name, shard in self._shards.items() for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": files}
        text = (json.dumps(index, indent=2) + "\n").encode()
        (self._folder / INDEX).write_bytes(text)
        self.sha256[INDEX] = hashlib.sha256(text).hexdigest()

    def close(self) -> None:
        if self._left_bytes:
            self._file.close()

    def _open(self, name: str) -> None:
        self._name, self._digest = name, hashlib.sha256()
        self._file = (self._folder / name).open("wb")
        self._left_bytes = sum(tensor.data_bytes for tensor in self._shards[name])
        self._put(_header(self._shards[name]))

    def _put(self, raw: bytes | memoryview) -> None:
        self._file.write(raw)
        self._digest.update(raw)


def split_into_shards(plan: Sequence[Planned]) -> list[list[Planned]]:
    """Consecutive tensors; only a shard of a single tensor is over the limit."""
    shards: list[list[Planned]] = [[]]
    for tensor in plan:
        shard_bytes = sum(planned.data_bytes for planned in (*shards[-1], tensor))
        if shards[-1] and shard_bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def _header(tensors: Sequence[Planned]) -> bytes:
    fields: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    begin = 0
    for tensor in tensors:
        place = [begin, begin := begin + tensor.data_bytes]
        shape = list(tensor.shape)
        fields[tensor.name] = {"dtype": tensor.dtype, "shape": shape, "data_offsets": place}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


def raw_bytes(array: Array) -> memoryview:
    """An array's bytes in row order, copied only if it is not contiguous."""
    flat: Any = array if array.flags.c_contiguous else array.copy()
    return memoryview(flat).cast("B")

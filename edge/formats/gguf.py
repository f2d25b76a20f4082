"""Look into a GGUF file: every key, and where every tensor lies.

Parsed here rather than by the gguf package, whose reader believes every count and
length it finds: a file with one wrong byte makes it loop for hours or fail in a
dozen ways. Here each is checked against the bytes that are left, so that a broken
file is a sentence at once. Format: magic, version, counts, keys with typed values,
tensor descriptions, padding, data (ggml's docs/gguf.md).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from edge.errors import EdgeError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 had shorter counts and lived for days
DEFAULT_ALIGNMENT = 32
STRING, ARRAY = 8, 9
# Value types, by their number in the format, as struct and numpy spell them.
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
# Far above any model's, so that a wrong count costs no memory.
MAX_HEADER_BYTES = 1 << 26
MAX_ENTRIES = 1 << 16
MAX_ARRAY_ITEMS = 1 << 21
MAX_DIMENSIONS = 4

Value = bool | int | float | str | list[Any]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor.

    Attributes:
        name: as llama.cpp calls it.
        kind: ggml's name of its type, such as F16 or Q4_0.
        shape: rows first, as in Hugging Face's files; the format itself stores it reversed.
        begin: where its data begin, counted from the start of the file.
        data_bytes: how long they are.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    begin: int
    data_bytes: int

    @property
    def rows(self) -> int:
        """How many there are along the first axis."""
        return self.shape[0]


@dataclass(frozen=True)
class GgufFile:
    """The head of a file, checked against its size.

    Attributes:
        path: the file.
        version: of the format, 2 or 3.
        keys: every value by key.
        tensors: in the order of the file.
        key_spans: where each key with its value lies: begin and end offset.
        tensor_span: where the tensor descriptions lie.
        alignment: every tensor begins at a multiple of it, counted from data_begin.
        data_begin: where the data begin.
        file_bytes: how long the file is.
    """

    path: Path
    version: int
    keys: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]
    key_spans: Mapping[str, tuple[int, int]]
    tensor_span: tuple[int, int]
    alignment: int
    data_begin: int
    file_bytes: int


def read_gguf(path: Path) -> GgufFile:
    """Read and check everything but the data.

    Raises:
        EdgeError: the file is missing, cut off, of another byte order or version, or
            contradicts itself.
    """
    try:
        with path.open("rb") as file:
            return _read(_Head(file, path))
    except FileNotFoundError:
        raise EdgeError(f"{path} is missing; convert the model again.") from None
    except OSError as error:
        raise EdgeError(
            f"{path} cannot be read ({error.strerror}); check its permissions."
        ) from None


def read_tensors(path: Path) -> list[GgufTensor]:
    """Every tensor of the file.

    Raises:
        EdgeError: as read_gguf.
    """
    return list(read_gguf(path).tensors)


def read_string(path: Path, key: str) -> str | None:
    """One string key, or None.

    Raises:
        EdgeError: as read_gguf.
    """
    value = read_gguf(path).keys.get(key)
    return value if isinstance(value, str) else None


def pack_text(text: str) -> bytes:
    """A string as the format stores it."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def pack_key(key: str, code: int, value: float | str) -> bytes:
    """A key with its value as the format stores them.

    Args:
        key: its name.
        code: the value's type, STRING or one of SCALARS.
        value: the value.
    """
    stored = pack_text(str(value)) if code == STRING else struct.pack(f"<{SCALARS[code]}", value)
    return pack_text(key) + struct.pack("<I", code) + stored


class _Head:
    """A cursor that never runs past the end of the file, nor into absurd sizes."""

    def __init__(self, file: BinaryIO, path: Path):
        self.path = path
        self.file_bytes = file.seek(0, 2)
        self.position = 0
        self._limit = min(self.file_bytes, MAX_HEADER_BYTES)
        self._file = file
        file.seek(0)

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self._limit - self.position:
            self.broken(f"it is cut off or holds a wrong length at byte {self.position}")
        self.position += count
        data = self._file.read(count)
        if len(data) < count:  # somebody is shortening it meanwhile
            self.broken(f"it ends before byte {self.position}")
        return data

    def scalar(self, code: int) -> Any:
        """The next number or truth value, of one of the SCALARS."""
        layout = _layout(code)
        return layout.unpack(self.take(layout.size))[0]

    def text(self) -> str:
        """The next string."""
        try:
            return self.take(int.from_bytes(self.take(8), "little")).decode()
        except UnicodeDecodeError:
            self.broken(f"the text before byte {self.position} is not UTF-8")

    def count(self, what: str, limit: int) -> int:
        """The next count, which must be believable."""
        value = int.from_bytes(self.take(8), "little")
        if value > limit:
            self.broken(f"it claims {value} {what}")
        return value

    def value(self, code: int) -> Value:
        """The next value of a type."""
        if code == STRING:
            return self.text()
        if code in SCALARS:
            value: Value = self.scalar(code)
            return value
        if code == ARRAY:
            return self._array()
        self.broken(f"there is no value type {code}, met at byte {self.position}")

    def _array(self) -> list[Any]:
        code = self.scalar(4)
        items = self.count("items in one array", MAX_ARRAY_ITEMS)
        if code == STRING:
            return [self.text() for _ in range(items)]
        if code not in SCALARS:  # llama.cpp has no arrays of arrays either
            self.broken(f"there is no array of type {code}, met at byte {self.position}")
        dtype = np.dtype(f"<{SCALARS[code]}")
        values: list[Any] = np.frombuffer(self.take(items * dtype.itemsize), dtype).tolist()
        return values

    def broken(self, reason: str) -> NoReturn:
        """Refuse the file."""
        raise EdgeError(
            f"{self.path} is not a whole GGUF file ({reason}); convert or download it again."
        )


@cache
def _layout(code: int) -> struct.Struct:
    return struct.Struct(f"<{SCALARS[code]}")


def _read(head: _Head) -> GgufFile:
    version = _read_version(head)
    tensor_count = head.count("tensors", MAX_ENTRIES)
    key_count = head.count("keys", MAX_ENTRIES)
    keys, key_spans = _read_keys(head, key_count)
    begin = head.position
    descriptions = [_read_description(head) for _ in range(tensor_count)]
    alignment = _alignment(head, keys)
    data_begin = math.ceil(head.position / alignment) * alignment
    tensors = tuple(
        GgufTensor(name, kind, shape, data_begin + offset, data_bytes)
        for name, kind, shape, offset, data_bytes in descriptions
    )
    _check_layout(head, tensors, alignment, data_begin)
    return GgufFile(
        path=head.path,
        version=version,
        keys=keys,
        tensors=tensors,
        key_spans=key_spans,
        tensor_span=(begin, head.position),
        alignment=alignment,
        data_begin=data_begin,
        file_bytes=head.file_bytes,
    )


def _read_version(head: _Head) -> int:
    if head.file_bytes < 4 or head.take(4) != MAGIC:
        raise EdgeError(f"{head.path} is not a GGUF file; check the path.")
    version = int(head.scalar(4))
    if version and version % 65536 == 0:
        raise EdgeError(
            f"{head.path} is a GGUF file for big-endian machines; "
            f"download the usual, little-endian one."
        )
    if version not in VERSIONS:
        raise EdgeError(
            f"{head.path} has version {version} of the GGUF format, edge reads 2 and 3; "
            f"download a newer file, or upgrade edge."
        )
    return version


def _read_keys(head: _Head, count: int) -> tuple[dict[str, Value], dict[str, tuple[int, int]]]:
    keys: dict[str, Value] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(count):
        begin = head.position
        key = head.text()
        if key in keys:
            head.broken(f"it has the key {key!r} twice")
        keys[key] = head.value(head.scalar(4))
        spans[key] = (begin, head.position)
    return keys, spans


def _read_description(head: _Head) -> tuple[str, str, tuple[int, ...], int, int]:
    """One tensor's name, type, shape, offset within the data, and length in bytes."""
    name = head.text()
    dimensions = head.scalar(4)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        head.broken(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(reversed([head.scalar(10) for _ in range(dimensions)]))
    code, offset = head.scalar(4), head.scalar(10)
    if code not in _kinds():
        head.broken(f"tensor {name!r} has the unknown type {code}")
    kind, block_items, block_bytes = _kinds()[code]
    if 0 in shape or shape[-1] % block_items:
        head.broken(f"tensor {name!r} of type {kind} has shape {list(shape)}")
    return name, kind, shape, offset, math.prod(shape) // block_items * block_bytes


@cache
def _kinds() -> dict[int, tuple[str, int, int]]:
    """Every tensor type: its name, and how many items of how many bytes a block has."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): (str(kind.name), *size) for kind, size in GGML_QUANT_SIZES.items()}


def block_size(kind: str) -> tuple[int, int]:
    """How many items in how many bytes a block of a tensor type has."""
    return next((items, data) for name, items, data in _kinds().values() if name == kind)


def _alignment(head: _Head, keys: Mapping[str, Value]) -> int:
    value = keys.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or value <= 0 or value & (value - 1):
        head.broken(f"general.alignment is {value!r}, not a power of two")
    return value


def _check_layout(
    head: _Head, tensors: tuple[GgufTensor, ...], alignment: int, data_begin: int
) -> None:
    """Names are unique, and data lie aligned, apart, and inside the file."""
    if len({tensor.name for tensor in tensors}) < len(tensors):
        head.broken("it has two tensors of one name")
    end = data_begin
    for tensor in sorted(tensors, key=lambda tensor: tensor.begin):
        if tensor.begin < end or (tensor.begin - data_begin) % alignment:
            head.broken(f"tensor {tensor.name!r} overlaps another or is not aligned")
        end = tensor.begin + tensor.data_bytes
    if end > head.file_bytes:
        head.broken(f"it has {head.file_bytes} bytes of {end}")

"""The head of a GGUF file: every key, and where every tensor lies.

The gguf package's reader believes every count and length it finds: one wrong byte makes it loop
for hours. Here each is checked against the bytes that are left. Format: ggml's docs/gguf.md.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from edge.errors import EdgeError
from edge.formats.files import open_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 is obsolete
DEFAULT_ALIGNMENT = 32
STRING, ARRAY = 8, 9
# Value types, by their number in the format, as struct and numpy spell them.
SCALARS = {**dict(enumerate("BbHhIif?")), 10: "Q", 11: "q", 12: "d"}
# Far above any model's, so that a wrong count costs no memory.
MAX_HEADER_BYTES = 1 << 26
MAX_ENTRIES = 1 << 16
MAX_ARRAY_ITEMS = 1 << 21
MAX_DIMENSIONS = 4

Value = bool | int | float | str | list[Any]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor."""

    name: str
    kind: str  # ggml's name of its type, such as F16 or Q4_0
    shape: tuple[int, ...]  # rows first, as in Hugging Face's files
    begin: int  # from the start of the file
    data_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """The head of a file, checked against its size: every value by key, tensors in order."""

    path: Path
    keys: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]


def read_gguf(path: Path) -> GgufFile:
    """Read and check everything but the data; an EdgeError if the file contradicts itself."""
    with open_file(path) as file:
        return _read(_Head(file, path))


def block_size(kind: str) -> tuple[int, int]:
    """Items and bytes of a tensor type's block."""
    return next((items, size) for name, items, size in _kinds().values() if name == kind)


@cache
def _kinds() -> dict[int, tuple[str, int, int]]:
    """Name, and items and bytes of a block, of every tensor type by its number."""
    from gguf.constants import GGML_QUANT_SIZES  # here: the package takes half a second to load

    return {int(kind): (str(kind.name), *size) for kind, size in GGML_QUANT_SIZES.items()}


class _Head:
    """A cursor that never runs past the end of the file, nor into absurd sizes."""

    def __init__(self, file: BinaryIO, path: Path):
        self.path, self._file = path, file
        self.file_bytes = file.seek(0, 2)
        self.position = file.seek(0)

    def take(self, count: int) -> bytes:
        end = self.position + count
        data = self._file.read(count) if end <= MAX_HEADER_BYTES else b""
        if len(data) < count:
            self.broken(f"it is cut off or holds a wrong length at byte {self.position}")
        self.position = end
        return data

    def number(self, layout: str) -> Any:
        """The next number or truth value, as struct spells its type."""
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))[0]

    def count(self, name: str, limit: int) -> int:
        """The next count of something."""
        value: int = self.number("Q")
        if value > limit:
            self.broken(f"it claims {value} {name}")
        return value

    def text(self) -> str:
        """The next string."""
        try:
            return self.take(int.from_bytes(self.take(8), "little")).decode()
        except UnicodeDecodeError:
            self.broken(f"the text before byte {self.position} is not UTF-8")

    def value(self) -> Value:
        """The next value, after its type."""
        code = self.number("I")
        if code != ARRAY:
            value: Value = next(self._values(code, 1))
            return value
        code, items = self.number("I"), self.count("items in one array", MAX_ARRAY_ITEMS)
        return list(self._values(code, items))

    def _values(self, code: int, items: int) -> Iterator[Any]:
        if code == STRING:
            return (self.text() for _ in range(items))
        if code not in SCALARS:  # llama.cpp has no arrays of arrays either
            self.broken(f"there is no value type {code}, met at byte {self.position}")
        dtype = np.dtype(f"<{SCALARS[code]}")
        return iter(np.frombuffer(self.take(items * dtype.itemsize), dtype).tolist())

    def broken(self, reason: str) -> NoReturn:
        """Refuse the file."""
        raise EdgeError(
            f"{self.path} is not a whole GGUF file ({reason}); convert or download it again."
        )


def _read(head: _Head) -> GgufFile:
    _check_version(head)
    tensor_count = head.count("tensors", MAX_ENTRIES)
    keys: dict[str, Value] = {}
    for _ in range(head.count("keys", MAX_ENTRIES)):
        key = head.text()
        if key in keys:
            head.broken(f"it has the key {key!r} twice")
        keys[key] = head.value()
    described = [_read_description(head) for _ in range(tensor_count)]
    alignment = keys.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        head.broken(f"general.alignment is {alignment!r}, not a power of two")
    data_begin = math.ceil(head.position / alignment) * alignment
    tensors = tuple(replace(tensor, begin=data_begin + tensor.begin) for tensor in described)
    _check_layout(head, tensors, alignment, data_begin)
    return GgufFile(head.path, keys, tensors)


def _check_version(head: _Head) -> None:
    if head.file_bytes < 4 or head.take(4) != MAGIC:
        raise EdgeError(f"{head.path} is not a GGUF file; check the path.")
    version: int = head.number("I")
    if version not in VERSIONS:
        big_endian = version and version % 65536 == 0
        kind = "for big-endian machines" if big_endian else f"of version {version}"
        raise EdgeError(
            f"{head.path} is a GGUF file {kind}; edge reads versions 2 and 3 in the usual, "
            f"little-endian order, so download another file."
        )


def _read_description(head: _Head) -> GgufTensor:
    """A tensor that begins where its offset within the data says."""
    name, dimensions = head.text(), head.number("I")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        head.broken(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(reversed([head.number("Q") for _ in range(dimensions)]))
    code, offset = head.number("I"), head.number("Q")
    if code not in _kinds():
        head.broken(f"tensor {name!r} has the unknown type {code}")
    kind, items, block_bytes = _kinds()[code]
    if 0 in shape or shape[-1] % items:
        head.broken(f"tensor {name!r} of type {kind} has shape {list(shape)}")
    return GgufTensor(name, kind, shape, offset, math.prod(shape) // items * block_bytes)


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

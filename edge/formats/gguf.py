"""The header of a GGUF file: keys, and the place of each tensor. Format: ggml's docs/gguf.md.

The gguf package's reader does not check counts and lengths: one wrong byte makes it loop for
hours. Here each is checked against the bytes that are left.
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
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
# Codes of struct and numpy for the value types, by their number in the format.
SCALARS = {**dict(enumerate("BbHhIif?")), 10: "Q", 11: "q", 12: "d"}
# Above those of any model: a wrong count must not take memory.
MAX_HEADER_BYTES = 1 << 26
MAX_ENTRIES = 1 << 16
MAX_ARRAY_ITEMS = 1 << 21
MAX_DIMENSIONS = 4

PART_NAME = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")

Value = bool | int | float | str | list[Any]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor."""

    name: str
    kind: str  # ggml's name of its type, such as F16 or Q4_0; "type 99" if it is unknown
    shape: tuple[int, ...]  # rows first, as in Hugging Face's files
    begin: int  # from the start of the file
    data_bytes: int
    path: Path


@dataclass(frozen=True)
class GgufFile:
    """The header of a file, checked against the file's size."""

    path: Path
    keys: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]


def read_gguf(path: Path) -> GgufFile:
    """Read and check everything but the data; an EdgeError if the file is damaged."""
    with open_file(path) as file:
        return _read(_Header(file, path))


def read_model(path: Path) -> GgufFile:
    """A whole model from its file, or from any part of a split one, with the first part's keys."""
    file = read_gguf(path)
    count = file.keys.get("split.count", 1)
    if count in (0, 1):
        return file
    match = PART_NAME.fullmatch(path.name)
    if match is None or int(match[2]) != count:
        raise EdgeError(
            f"{path} is one of {count} parts of a split model; give it the name that it had, which "
            f"ends in -00001-of-{count:0>5}.gguf."
        )
    parts = [read_gguf(part) for part in part_paths(path)]
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    wanted = parts[0].keys.get("split.tensors.count", len(tensors))
    if wanted != len(tensors) or len({tensor.name for tensor in tensors}) < len(tensors):
        raise EdgeError(
            f"the {count} parts of {path} have {len(tensors)} tensors, not {wanted} different "
            f"ones; download them again."
        )
    return GgufFile(parts[0].path, parts[0].keys, tensors)


def part_paths(path: Path) -> list[Path]:
    """All parts of a model by the name of one; a file that is not a part alone."""
    match = PART_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    numbers = range(1, int(match[2]) + 1)
    return [path.with_name(f"{match[1]}-{part:05}-of-{match[2]}.gguf") for part in numbers]


def unsplit_name(path: Path) -> str:
    """The file's name without its ending and the number of a part."""
    match = PART_NAME.fullmatch(path.name)
    return match[1] if match else path.stem


def block_size(kind: str) -> tuple[int, int]:
    """Items and bytes of a tensor type's block."""
    return next((items, size) for name, items, size in _kinds().values() if name == kind)


@cache
def _kinds() -> dict[int, tuple[str, int, int]]:
    """Name, and items and bytes of a block, of every tensor type by its number."""
    from gguf.constants import GGML_QUANT_SIZES  # here: the package takes half a second to load

    return {int(kind): (str(kind.name), *size) for kind, size in GGML_QUANT_SIZES.items()}


class _Header:
    """A cursor that refuses to read past the end of the file or of the header's limit."""

    def __init__(self, file: BinaryIO, path: Path):
        self.path, self._file = path, file
        self.file_bytes = file.seek(0, 2)
        self.position = file.seek(0)

    def take(self, count: int) -> bytes:
        end = self.position + count
        data = self._file.read(count) if end <= MAX_HEADER_BYTES else b""
        if len(data) < count:
            self.broken(f"cut off, or a wrong length at byte {self.position}")
        self.position = end
        return data

    def number(self, layout: str) -> Any:
        """The next number of a type as struct spells it."""
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))[0]

    def count(self, name: str, limit: int) -> int:
        """The next count, of at most `limit`."""
        value: int = self.number("Q")
        if value > limit:
            self.broken(f"it claims {value} {name}")
        return value

    def text(self) -> str:
        r"""The next string; bytes that are not UTF-8, which llama.cpp takes, as \xff."""
        data = self.take(int.from_bytes(self.take(8), "little"))
        return data.decode(errors="backslashreplace")

    def value(self) -> Value:
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
            self.broken(f"unknown value type {code} before byte {self.position}")
        dtype = np.dtype(f"<{SCALARS[code]}")
        return iter(np.frombuffer(self.take(items * dtype.itemsize), dtype).tolist())

    def broken(self, reason: str) -> NoReturn:
        raise EdgeError(
            f"{self.path} is not a complete GGUF file ({reason}); convert or download it again."
        )


def _read(header: _Header) -> GgufFile:
    _check_version(header)
    tensor_count = header.count("tensors", MAX_ENTRIES)
    keys: dict[str, Value] = {}
    for _ in range(header.count("keys", MAX_ENTRIES)):
        key = header.text()
        if key in keys:
            header.broken(f"the key {key!r} appears twice")
        keys[key] = header.value()
    described = [_read_description(header) for _ in range(tensor_count)]
    alignment = keys.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        header.broken(f"general.alignment is {alignment!r}, not a power of two")
    data_begin = math.ceil(header.position / alignment) * alignment
    moved = [replace(tensor, begin=data_begin + tensor.begin) for tensor in described]
    tensors = tuple(_with_sizes(moved, header.file_bytes))
    _check_layout(header, tensors, alignment, data_begin)
    return GgufFile(header.path, keys, tensors)


def _check_version(header: _Header) -> None:
    if header.file_bytes < 4 or header.take(4) != MAGIC:
        raise EdgeError(f"{header.path} is not a GGUF file; check the path.")
    version: int = header.number("I")
    if version not in VERSIONS:
        raise EdgeError(
            f"{header.path} is a GGUF file of version {version}; edge reads versions 2 and 3 in "
            f"little-endian order, so download another file."
        )


def _read_description(header: _Header) -> GgufTensor:
    """A tensor, `begin` counted from the start of the data."""
    name, dimensions = header.text(), header.number("I")
    if dimensions > MAX_DIMENSIONS:
        header.broken(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(reversed([header.number("Q") for _ in range(dimensions)])) or (1,)
    code, offset = header.number("I"), header.number("Q")
    # Of a newer ggml or a fork; who needs the data refuses it.
    kind, items, block_bytes = _kinds().get(code, (f"type {code}", 1, 0))
    if 0 in shape or shape[-1] % items:
        header.broken(f"tensor {name!r} of type {kind} has shape {list(shape)}")
    size = math.prod(shape) // items * block_bytes
    return GgufTensor(name, kind, shape, offset, size, header.path)


def _with_sizes(tensors: Sequence[GgufTensor], file_bytes: int) -> Iterator[GgufTensor]:
    """The tensors, those of unknown types with the bytes up to the next one."""
    begins = sorted(tensor.begin for tensor in tensors)
    ends = dict(zip(begins, [*begins[1:], file_bytes], strict=False))
    for tensor in tensors:
        unknown_bytes = max(0, ends[tensor.begin] - tensor.begin)
        yield tensor if tensor.data_bytes else replace(tensor, data_bytes=unknown_bytes)


def _check_layout(
    header: _Header, tensors: tuple[GgufTensor, ...], alignment: int, data_begin: int
) -> None:
    """An EdgeError unless names are unique and data are aligned, apart and inside the file."""
    if len({tensor.name for tensor in tensors}) < len(tensors):
        header.broken("two tensors have one name")
    end = data_begin
    for tensor in sorted(tensors, key=lambda tensor: tensor.begin):
        if tensor.begin < end or (tensor.begin - data_begin) % alignment:
            header.broken(f"tensor {tensor.name!r} overlaps another or is not aligned")
        end = tensor.begin + tensor.data_bytes
    if end > header.file_bytes:
        header.broken(f"{header.file_bytes} bytes of {end}")

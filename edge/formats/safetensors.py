"""One safetensors file: a checked header, and tensors read in blocks of rows.

Read here rather than with the safetensors package because numpy has no bfloat16,
and because a broken download deserves an exact sentence (how many bytes are
missing) instead of a parser's message. Format: an unsigned 64-bit header length,
a JSON header {name: {dtype, shape, data_offsets}}, then the data.

Rows are read, not mapped: pages of a mapped file count as resident memory until
something else wants it, so converting 6 GB would look like, and on a small machine
be, 6 GB of memory.
"""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError
from edge.formats.files import strict_json

if TYPE_CHECKING:
    import numpy as np

# The bound that the reference implementation sets on the header.
MAX_HEADER_BYTES = 100_000_000
MAX_AXES = 8  # far above any network's, so that no product of sizes takes long
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U32": 4, "U8": 1}
# Packed and index tensors of quantised checkpoints; no tensor of a network is one.
INTEGERS = ("I64", "I32", "U32", "U8")
FLOATS = tuple(dtype for dtype in ITEM_BYTES if dtype not in INTEGERS)
NUMPY_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "U32": "<u4",
    "U8": "<u1",
}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies; begin and end count from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A file whose header has been checked against its size.

    Raises:
        EdgeError: the file is missing, truncated, or its header contradicts itself.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
                raise self._broken("is a folder, pipe or device, no file")
            self.file_bytes = status.st_size
            with path.open("rb") as file:
                header_bytes = int.from_bytes(file.read(8), "little")
                self.data_begin = 8 + header_bytes
                if self.file_bytes < 8 or self.data_begin > self.file_bytes:
                    raise self._broken(f"is cut off inside its header ({self.file_bytes} bytes)")
                if header_bytes > MAX_HEADER_BYTES:
                    raise self._broken(f"claims a header of {header_bytes} bytes")
                self.header = file.read(header_bytes)
        except FileNotFoundError:
            raise self._broken("is missing") from None
        except OSError as error:
            raise self._broken(f"cannot be read ({error.strerror})") from None
        self.entries = self._parse()
        self._check_layout()

    def check_is_float(self, name: str) -> None:
        """Refuse whole numbers where weights belong.

        Raises:
            EdgeError: the tensor holds such.
        """
        dtype = self.entries[name].dtype
        if dtype not in FLOATS:
            raise EdgeError(
                f"{self.path}: tensor {name} is stored as {dtype}, not as a float; "
                f"use the unquantised checkpoint."
            )

    def read(
        self, name: str, start: int = 0, stop: int | None = None
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Rows start to stop of a tensor, bfloat16 widened to float32, other dtypes as stored.

        Start and stop count along the first axis and are clipped as in a slice; a tensor
        without axes is its own only row.

        Raises:
            EdgeError: the file has become unreadable or shorter since it was opened.
        """
        entry = self.entries[name]
        if not entry.shape:
            return self._numbers(entry, entry.begin, 1).reshape(())
        first, last, _ = slice(start, stop).indices(entry.shape[0])
        rows, width = max(0, last - first), math.prod(entry.shape[1:])
        begin = entry.begin + first * width * ITEM_BYTES[entry.dtype]
        return self._numbers(entry, begin, rows * width).reshape(rows, *entry.shape[1:])

    def _numbers(
        self, entry: TensorEntry, begin: int, count: int
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Count numbers from byte begin of the file, one-dimensional."""
        import numpy as np  # here: who reads headers alone need not wait 0.1 s for it

        try:
            stored = np.fromfile(self.path, NUMPY_TYPES[entry.dtype], count, offset=begin)
        except OSError as error:
            raise self._broken(f"cannot be read any more ({error.strerror})") from None
        if stored.size < count:
            raise self._broken("has been cut off since it was opened")
        if entry.dtype == "BF16":
            wide = stored.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        return stored

    def _parse(self) -> dict[str, TensorEntry]:
        try:
            header = strict_json(self.header)
            metadata = header.pop("__metadata__", {})
            texts = () if metadata is None else metadata.values()  # MLX writes null for none
            if not all(isinstance(text, str) for text in texts):
                raise ValueError(metadata)
            return {name: self._entry(name, fields) for name, fields in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise self._broken("has a header that is not safetensors") from None

    def _entry(self, name: str, fields: dict[str, Any]) -> TensorEntry:
        dtype, shape = fields["dtype"], fields["shape"]
        begin, end = fields["data_offsets"]
        if dtype not in ITEM_BYTES:
            raise EdgeError(
                f"{self.path}: tensor {name} is stored as {dtype}, edge reads "
                f"{', '.join(ITEM_BYTES)}; use the unquantised checkpoint."
            )
        numbers = (begin, end, *shape)
        if type(shape) is not list or len(shape) > MAX_AXES:
            raise ValueError(name)
        if not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
            raise ValueError(name)
        if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
            raise self._broken(f"gives tensor {name} {end - begin} bytes for shape {shape}")
        return TensorEntry(dtype, tuple(shape), self.data_begin + begin, self.data_begin + end)

    def _check_layout(self) -> None:
        """Tensors must fill the data exactly, as the format demands: no gap, no overlap."""
        position = self.data_begin
        in_order = sorted(self.entries.items(), key=lambda item: (item[1].begin, item[1].end))
        for name, entry in in_order:
            if entry.begin != position:
                raise self._broken(f"has tensor {name} overlapping or after a gap")
            position = entry.end
        if position > self.file_bytes:
            raise self._broken(f"is cut off: {self.file_bytes} bytes of {position}")
        if position < self.file_bytes:
            raise self._broken(f"has {self.file_bytes - position} bytes too many")

    def _broken(self, what: str) -> EdgeError:
        return EdgeError(f"{self.path} {what}; download it again.")

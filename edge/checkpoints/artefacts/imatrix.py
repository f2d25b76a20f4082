"""An importance matrix made by llama-imatrix: how much each input of every matrix matters.

Both formats are read as llama-quantize reads them (llama.cpp's common/imatrix-loader.cpp
and tools/quantize/quantize.cpp): GGUF, with the tensors NAME.in_sum2 and NAME.counts, and
the older binary one, which has no magic number.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from edge.errors import EdgeError
from edge.gguf_file import GgufTensor, read_gguf
from edge.llamacpp_quantise import Float32, Importance

MAGIC = b"GGUF"
SUMS, COUNTS = ".in_sum2", ".counts"
MAX_NAME_BYTES = 1024
MAKE_ANOTHER = "make it again with llama-imatrix from this model's GGUF file"


class _Damaged(ValueError):
    """What is wrong with the file, as a phrase."""


def read_imatrix(path: Path) -> Importance:
    """Read a file in either format.

    Raises:
        EdgeError: it is missing, damaged, something else, or holds numbers that are no mean
            squares.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
        found = _read_gguf(path) if start == MAGIC else _read_legacy(path.read_bytes(), path.name)
        for name, values in found.columns.items():
            if not np.isfinite(values).all() or (values < 0).any():
                raise _Damaged(f"{name} holds values that are no mean squares")
    except OSError as error:
        raise EdgeError(
            f"{path} cannot be read ({error.strerror}); give --imatrix a file that llama-imatrix "
            f"made."
        ) from None
    except _Damaged as error:
        raise EdgeError(
            f"{path} is no whole importance matrix ({error}); {MAKE_ANOTHER}."
        ) from None
    return found


def check_imatrix(importance: Importance, source: Path) -> None:
    """Compare with the model that it shall serve.

    Every entry must fit a tensor of the model, and every matrix of its blocks needs an entry:
    llama.cpp would quietly round the rest without one.

    Raises:
        EdgeError: it was made from another model.
    """
    widths = {t.name: t.shape[-1] for t in read_gguf(source).tensors if len(t.shape) == 2}
    for name, values in importance.columns.items():
        if widths.get(name) != values.size:
            raise EdgeError(
                f"the importance matrix has {values.size} columns for {name}, the model "
                f"{widths.get(name, 'no such tensor')}; {MAKE_ANOTHER}."
            )
    for name in widths:
        needed = name.startswith("blk.") and not name.endswith("_norm.weight")
        if needed and name not in importance.columns:
            raise EdgeError(f"the importance matrix has no entry for {name}; {MAKE_ANOTHER}.")


def _keys(path_name: str, datasets: list[str], entries: int, chunks: int) -> dict[str, str | int]:
    """What llama-quantize records, with the file's name instead of its path."""
    keys: dict[str, str | int] = {"quantize.imatrix.file": path_name}
    if datasets:
        keys["quantize.imatrix.dataset"] = datasets[0]
    keys["quantize.imatrix.entries_count"] = entries
    if chunks > 0:
        keys["quantize.imatrix.chunks_count"] = chunks
    return keys


def _read_gguf(path: Path) -> Importance:
    file = read_gguf(path)
    if file.keys.get("general.type") != "imatrix":
        raise _Damaged(f"a GGUF file with general.type {file.keys.get('general.type')!r}")
    tensors = {tensor.name: tensor for tensor in file.tensors}
    columns: dict[str, Float32] = {}
    for name in (t.removesuffix(SUMS) for t in tensors if t.endswith(SUMS)):
        sums, counts = tensors[name + SUMS], tensors.get(name + COUNTS)
        if counts is None or counts.data_bytes != 4 or sums.kind != "F32" or counts.kind != "F32":
            raise _Damaged(f"{name} has no float32 sums with one count, as a dense model's has")
        columns[name] = _means(_read(path, sums), _read(path, counts))
    if not columns:
        raise _Damaged("it has no entries")
    chunks, datasets = (file.keys.get(f"imatrix.{key}") for key in ("chunk_count", "datasets"))
    return Importance(
        columns,
        _keys(
            path.name,
            [str(text) for text in datasets] if isinstance(datasets, list) else [],
            len(columns),
            chunks if isinstance(chunks, int) else 0,
        ),
    )


def _read(path: Path, tensor: GgufTensor) -> Float32:
    return np.fromfile(path, "<f4", count=tensor.data_bytes // 4, offset=tensor.begin)


def _means(sums: Float32, counts: Float32) -> Float32:
    """Sums over tokens and their number -> means; 1 everywhere if no token was counted."""
    count = np.round(counts[0])
    return sums / count if count > 0 else np.ones_like(sums)


def _read_legacy(data: bytes, path_name: str) -> Importance:
    """int32 entries; each: int32 length, name, int32 calls, int32 values, float32 sums.

    Then, optionally, int32 chunks, int32 length and the name of the text.
    """
    reader = _Legacy(data)
    columns: dict[str, Float32] = {}
    for _ in range(reader.count("entries")):
        name = reader.text()
        calls = reader.int32()
        values: Float32 = np.frombuffer(reader.take(4 * reader.count("values")), "<f4")
        if name in columns:
            raise _Damaged(f"{name} comes twice")
        columns[name] = values / np.float32(max(1, calls))
    chunks = reader.int32() if reader.rest else 0
    datasets = [reader.text()] if reader.rest else []
    return Importance(columns, _keys(path_name, datasets, len(columns), chunks))


class _Legacy:
    """Little-endian fields of a file, one after the other, never beyond its end."""

    def __init__(self, data: bytes):
        self.rest = memoryview(data)

    def take(self, size: int) -> bytes:
        if size > len(self.rest):
            raise _Damaged("it ends early")
        taken, self.rest = bytes(self.rest[:size]), self.rest[size:]
        return taken

    def int32(self) -> int:
        return int(struct.unpack("<i", self.take(4))[0])

    def count(self, what: str) -> int:
        number = self.int32()
        if number < 1:
            raise _Damaged(f"{number} {what}")
        return number

    def text(self) -> str:
        length = self.int32()
        if not 0 <= length <= MAX_NAME_BYTES:
            raise _Damaged(f"a name of {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise _Damaged("a name that is no text") from None

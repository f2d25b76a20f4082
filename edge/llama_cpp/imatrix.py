"""An importance matrix made by llama-imatrix: how much each input of every matrix matters.

Its GGUF files are read as llama-quantize reads them (llama.cpp's tools/quantize/quantize.cpp): the
tensors NAME.in_sum2 and NAME.counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import EdgeError
from edge.formats.gguf import GgufFile, GgufTensor, read_gguf

SUMS, COUNTS = ".in_sum2", ".counts"
MAKE_ANOTHER = "make it again with llama-imatrix from this model's GGUF file"
Float32 = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Importance:
    """How much each input column of a matrix matters."""

    columns: Mapping[str, Float32]  # mean square of every input (in,), by GGUF tensor name
    keys: Mapping[str, str | int]  # what to record in the quantised file


def read_imatrix(path: Path) -> Importance:
    """Read a file.

    Raises:
        EdgeError: it is missing, damaged, something else, or its numbers are not mean squares.
    """
    if not path.is_file():
        raise EdgeError(f"{path} is not a file; give --imatrix one that llama-imatrix made.")
    file = read_gguf(path)
    kind = file.keys.get("general.type")
    if kind != "imatrix":
        raise _unfit(path, f"a GGUF file with general.type {kind!r}")
    tensors = {tensor.name: tensor for tensor in file.tensors}
    columns: dict[str, Float32] = {}
    for name in (t.removesuffix(SUMS) for t in tensors if t.endswith(SUMS)):
        sums, counts = tensors[name + SUMS], tensors.get(name + COUNTS)
        if counts is None or counts.data_bytes != 4 or sums.kind != "F32" or counts.kind != "F32":
            raise _unfit(path, f"{name} has no float32 sums with one count, as a dense model's has")
        count = np.round(_read(path, counts)[0])
        # 1 everywhere if no token was counted, as llama-quantize has it.
        columns[name] = _read(path, sums) / count if count > 0 else np.ones(sums.shape[-1], "f4")
        if not np.isfinite(columns[name]).all() or (columns[name] < 0).any():
            raise _unfit(path, f"{name} holds values that are not mean squares")
    if not columns:
        raise _unfit(path, "it has no entries")
    return Importance(columns, _record(file, len(columns)))


def _record(file: GgufFile, entries: int) -> dict[str, str | int]:
    """The keys that llama-quantize records, with the file's name instead of its path."""
    keys: dict[str, str | int] = {"quantize.imatrix.file": file.path.name}
    datasets, chunks = (file.keys.get(f"imatrix.{key}") for key in ("datasets", "chunk_count"))
    if isinstance(datasets, list) and datasets:
        keys["quantize.imatrix.dataset"] = str(datasets[0])
    keys["quantize.imatrix.entries_count"] = entries
    if isinstance(chunks, int) and chunks > 0:
        keys["quantize.imatrix.chunks_count"] = chunks
    return keys


def check_imatrix(importance: Importance, model: GgufFile) -> None:
    """Refuse a matrix that was made from another model.

    Every entry must fit a tensor of the model, and every matrix of its blocks needs an entry:
    llama.cpp would quietly round the rest without one.
    """
    widths = {t.name: t.shape[-1] for t in model.tensors if len(t.shape) == 2}
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


def _unfit(path: Path, reason: str) -> EdgeError:
    return EdgeError(f"{path} is not a whole importance matrix ({reason}); {MAKE_ANOTHER}.")


def _read(path: Path, tensor: GgufTensor) -> Float32:
    return np.fromfile(path, "<f4", count=tensor.data_bytes // 4, offset=tensor.begin)

"""An importance matrix made by llama-imatrix: how much each input of every matrix matters.

Its GGUF files are read as llama-quantize reads them (llama.cpp's tools/quantize/quantize.cpp): the
tensors NAME.in_sum2 and NAME.counts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge.errors import EdgeError
from edge.formats.gguf import MAGIC, GgufTensor, read_gguf
from edge.llama_cpp.quantise_child import Float32, Importance

SUMS, COUNTS = ".in_sum2", ".counts"
MAKE_ANOTHER = "make it again with llama-imatrix from this model's GGUF file"


def read_imatrix(path: Path) -> Importance:
    """Read a file.

    Raises:
        EdgeError: it is missing, damaged, something else, or holds numbers that are no mean
            squares.
    """
    _check_magic(path)
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
        columns[name] = _means(_read(path, sums), _read(path, counts))
        if not np.isfinite(columns[name]).all() or (columns[name] < 0).any():
            raise _unfit(path, f"{name} holds values that are no mean squares")
    if not columns:
        raise _unfit(path, "it has no entries")
    # What llama-quantize records, with the file's name instead of its path.
    keys: dict[str, str | int] = {"quantize.imatrix.file": path.name}
    datasets, chunks = (file.keys.get(f"imatrix.{key}") for key in ("datasets", "chunk_count"))
    if isinstance(datasets, list) and datasets:
        keys["quantize.imatrix.dataset"] = str(datasets[0])
    keys["quantize.imatrix.entries_count"] = len(columns)
    if isinstance(chunks, int) and chunks > 0:
        keys["quantize.imatrix.chunks_count"] = chunks
    return Importance(columns, keys)


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


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise EdgeError(
            f"{path} cannot be read ({error.strerror}); give --imatrix a file that llama-imatrix "
            f"made."
        ) from None
    if start != MAGIC:
        raise EdgeError(
            f"{path} is not a GGUF file; if an older llama-imatrix made it, "
            f"'llama-imatrix --in-file {path.name} -o imatrix.gguf' makes it one."
        )


def _unfit(path: Path, reason: str) -> EdgeError:
    return EdgeError(f"{path} is no whole importance matrix ({reason}); {MAKE_ANOTHER}.")


def _read(path: Path, tensor: GgufTensor) -> Float32:
    return np.fromfile(path, "<f4", count=tensor.data_bytes // 4, offset=tensor.begin)


def _means(sums: Float32, counts: Float32) -> Float32:
    """Sums over tokens and their number -> means; 1 everywhere if no token was counted."""
    count = np.round(counts[0])
    return sums / count if count > 0 else np.ones_like(sums)

"""llama.cpp's quantiser through its C interface; it blocks, so run it in a process of its own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import EdgeError
from edge.llama_cpp.session import first_complaint, library, listening

# Rows of one tensor that are held at once: source, float32 and result. llama.cpp's default is
# 8 GiB; the result is the same, since every row is quantised by itself.
BUFFER_BYTES = 64 << 20
TAG_INT, TAG_STR = 0, 3  # enum llama_model_kv_override_type
TEXT_BYTES = 127  # an override's name or text, without its closing zero

Float32 = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Importance:
    """How much each input column of a matrix matters, and what the file says about it.

    Attributes:
        columns: mean square of every input (in,), by GGUF tensor name.
        keys: what to record in the quantised file, by GGUF key.
    """

    columns: Mapping[str, Float32]
    keys: Mapping[str, str | int] = field(default_factory=dict)


def run_quantiser(
    source: Path,
    target: Path,
    file_type: int,
    on_log: Callable[[str], None],
    importance: Importance | None = None,
) -> None:
    """Quantise a float GGUF file.

    Args:
        source: a float16 or float32 GGUF file.
        target: the file to write.
        file_type: llama.cpp's `llama_ftype`.
        on_log: given every piece of the log, a line or less.
        importance: weighs the rounding errors.

    Raises:
        EdgeError: llama.cpp refused.
    """
    lib = library()
    params = lib.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = _threads()
    params.max_buf_size = BUFFER_BYTES
    if importance is not None:
        params.imatrix = _matrix(lib, importance.columns)
        params.kv_overrides = _overrides(lib, importance.keys)
    with listening(on_log):
        result = lib.llama_model_quantize(
            os.fsencode(source), os.fsencode(target), ctypes.byref(params)
        )
    if result != 0:
        raise EdgeError(f"llama.cpp could not quantise {source} ({first_complaint()}).")


def _threads() -> int:
    """The processors this process may use, which a container or taskset can limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _matrix(lib: Any, columns: Mapping[str, Float32]) -> Any:
    """A C array that ends with an empty entry; it keeps what it points to alive."""
    array = (lib.llama_model_imatrix_data * (len(columns) + 1))()
    for entry, (name, values) in zip(array, columns.items(), strict=False):
        data = (ctypes.c_float * values.size)(*values.tolist())
        entry.name, entry.size = name.encode(), values.size
        entry.data = ctypes.cast(data, ctypes.POINTER(ctypes.c_float))
    return array


def _overrides(lib: Any, keys: Mapping[str, str | int]) -> Any:
    """Keys for the quantised file as a C array that ends with an empty entry."""
    array = (lib.llama_model_kv_override * (len(keys) + 1))()
    for entry, (key, value) in zip(array, keys.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, int):
            entry.tag, entry.value.val_i64 = TAG_INT, value
        else:
            short = value.encode()[:TEXT_BYTES].decode("utf-8", "ignore")
            entry.tag, entry.value.val_str = TAG_STR, short.encode()
    return array

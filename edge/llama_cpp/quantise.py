"""Quantise a float GGUF file with llama.cpp, in a child process.

llama.cpp cannot be interrupted while it quantises, and aborts its process where an assertion
fails. A child can be killed on Ctrl-C, and its crash becomes an EdgeError. The child watches its
stdin, which closes when the parent ends for any reason: it then removes the unfinished file and
exits.
"""

import ctypes
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge.child import module_command
from edge.errors import EdgeError
from edge.formats.gguf import GgufFile, GgufTensor, read_gguf
from edge.formats.safetensors import read_array
from edge.linux_cpu import child_environment
from edge.llama_cpp.session import first_error, library

# Each tensor's line ends "size = 12.34 MiB" or "size = 12.34 MiB -> 5.67 MiB".
SIZE = re.compile(r"size = +([\d.]+) MiB")
MIB = 1 << 20
# llama_ftype of the K-quants; their blocks have 256 weights of a row, all others' 32.
K_QUANTS = range(10, 19)
LARGE_BLOCK, SMALL_BLOCK = 256, 32
# Rows of one tensor held at once: source, float32 and result. llama.cpp's default is 8 GiB.
# The result is the same, since each row is quantised by itself.
BUFFER_BYTES = 64 << 20
TAG_INT, TAG_STR = 0, 3  # enum llama_model_kv_override_type
TEXT_BYTES = 127  # an override's name or text, without its closing zero
# Tensors of an importance matrix, as llama-quantize reads them (tools/quantize/quantize.cpp).
SUMS, COUNTS = ".in_sum2", ".counts"
MAKE_ANOTHER = "make it again with llama-imatrix from this model's GGUF file"
Float32 = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Importance:
    """An importance matrix of llama-imatrix: a weight for each input of each matrix."""

    columns: Mapping[str, Float32]  # mean square of every input (in,), by GGUF tensor name
    keys: Mapping[str, str | int]  # to record in the quantised file


def quantise(
    source: Path,
    target: Path,
    file_type: int,
    progress: Callable[[float], None],
    imatrix: Path | None = None,
) -> None:
    """Write `target` from a float GGUF file; `file_type` is llama.cpp's `llama_ftype`.

    An EdgeError if llama.cpp fails, or the importance matrix is damaged or another model's.
    """
    model = read_gguf(source)
    arguments = [str(source), str(target), str(file_type)]
    if imatrix is not None:
        _check_imatrix(read_imatrix(imatrix), model)
        arguments.append(str(imatrix))
    total_mib = sum(tensor.data_bytes for tensor in model.tensors) / MIB
    done_mib, last = 0.0, ""
    with subprocess.Popen(
        module_command(__name__, *arguments),
        stdin=subprocess.PIPE,  # never written: it closes when this process ends
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**child_environment(), "PYTHONIOENCODING": "utf-8:backslashreplace"},
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if match := SIZE.search(line):
                    done_mib += float(match[1])
                    progress(min(1.0, done_mib / total_mib))
                last = line.strip() or last
            process.wait()  # before stdin is closed
        except BaseException:  # Ctrl-C
            process.kill()
            raise
    if process.returncode != 0:
        raise EdgeError(f"llama.cpp could not quantise to {target.name} ({last}).")
    progress(1.0)


def fallback_warning(path: Path, file_type: int) -> str | None:
    """Warning about matrices of another type, since their rows do not divide into blocks."""
    block = LARGE_BLOCK if file_type in K_QUANTS else SMALL_BLOCK
    matrices = [t for t in read_gguf(path).tensors if len(t.shape) == 2 and "_norm." not in t.name]
    found = [f"{t.name}: {t.kind}" for t in matrices if t.shape[-1] % block]
    if not found:
        return None
    return (
        f"llama.cpp stored {len(found)} tensors in other types, because their rows do not divide "
        f"into the format's blocks ({found[0]}); expect another size and quality than the name "
        f"says."
    )


def read_imatrix(path: Path) -> Importance:
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
    return Importance(columns, _imatrix_keys(file, len(columns)))


def _imatrix_keys(file: GgufFile, entries: int) -> dict[str, str | int]:
    keys: dict[str, str | int] = {"quantize.imatrix.file": file.path.name}
    datasets, chunks = (file.keys.get(f"imatrix.{key}") for key in ("datasets", "chunk_count"))
    if isinstance(datasets, list) and datasets:
        keys["quantize.imatrix.dataset"] = str(datasets[0])
    keys["quantize.imatrix.entries_count"] = entries
    if isinstance(chunks, int) and chunks > 0:
        keys["quantize.imatrix.chunks_count"] = chunks
    return keys


def _check_imatrix(importance: Importance, model: GgufFile) -> None:
    """Refuse an importance matrix of another model.

    Every entry must fit a tensor, and every matrix of the blocks needs an entry: llama.cpp would
    silently round the rest without one.
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
    return EdgeError(f"{path} is not a complete importance matrix ({reason}); {MAKE_ANOTHER}.")


def _read(path: Path, tensor: GgufTensor) -> Float32:
    return read_array(path, "<f4", tensor.data_bytes // 4, tensor.begin)


def main() -> int:
    """Print llama.cpp's log; the last line gives the reason of a failure."""
    source, target, file_type, *imatrix = sys.argv[1:]
    _end_with_parent(Path(target))
    try:
        importance = read_imatrix(Path(imatrix[0])) if imatrix else None
        run_quantiser(Path(source), Path(target), int(file_type), importance)
    except EdgeError as error:
        print(error, flush=True)
        return 1
    return 0


def run_quantiser(
    source: Path, target: Path, file_type: int, importance: Importance | None
) -> None:
    """Quantise in this process, which blocks, and print llama.cpp's log."""
    lib = library(partial(print, end="", flush=True))
    params = lib.llama_model_quantize_default_params()
    params.ftype = file_type
    # The cores this process may use, which a container or taskset can limit.
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        params.nthread = len(os.sched_getaffinity(0))
    else:
        params.nthread = os.cpu_count() or 1
    params.max_buf_size = BUFFER_BYTES
    if importance is not None:
        params.imatrix = _matrix(lib, importance.columns)
        params.kv_overrides = _overrides(lib, importance.keys)
    paths = os.fsencode(source), os.fsencode(target)
    if lib.llama_model_quantize(*paths, ctypes.byref(params)) != 0:
        raise EdgeError(f"llama.cpp could not quantise {source} ({first_error()}).")


def _end_with_parent(target: Path) -> None:
    """Start a thread that removes the unfinished file and exits once stdin closes."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose waiting reader blocks the exit
            pass
        target.unlink(missing_ok=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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


if __name__ == "__main__":
    sys.exit(main())

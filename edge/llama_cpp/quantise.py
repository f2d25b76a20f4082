"""Quantise a float GGUF file with llama.cpp, in a process of its own.

llama.cpp cannot be interrupted while it quantises, and aborts the process where an
assertion fails. A child can be stopped with Ctrl-C, and its death is a sentence. It
watches its standard input, which closes when its parent dies in whatever way: then it
removes the unfinished file and ends.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.child import module_command
from edge.convert.artefacts.imatrix import check_imatrix, read_imatrix
from edge.errors import EdgeError
from edge.formats.gguf import read_gguf, read_tensors
from edge.linux_cpu import child_environment

# Each tensor's line ends "size = 12.34 MiB" or "size = 12.34 MiB -> 5.67 MiB".
SIZE = re.compile(r"size = +([\d.]+) MiB")
MIB = 1 << 20
# llama_ftype of the K-quants; their blocks have 256 weights of a row, all others' 32.
K_QUANTS = range(10, 19)
LARGE_BLOCK, SMALL_BLOCK = 256, 32


def quantise(
    source: Path,
    target: Path,
    file_type: int,
    progress: Callable[[float], None],
    imatrix: Path | None = None,
) -> None:
    """Write `target` from `source`.

    Args:
        source: a float16 or float32 GGUF file.
        target: the file to write.
        file_type: llama.cpp's `llama_ftype`.
        progress: told the finished fraction of the source's bytes, 0 to 1.
        imatrix: an importance matrix of llama-imatrix.

    Raises:
        EdgeError: llama.cpp refused or died, or the matrix is damaged or another model's.
    """
    arguments = [str(source), str(target), str(file_type)]
    if imatrix is not None:
        check_imatrix(read_imatrix(imatrix), source)
        arguments.append(str(imatrix))
    total_mib = sum(tensor.data_bytes for tensor in read_tensors(source)) / MIB
    done_mib, last = 0.0, ""
    with _child(arguments) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if match := SIZE.search(line):
                done_mib += float(match[1])
                progress(min(1.0, done_mib / total_mib))
            last = line.strip() or last
    if process.returncode != 0:
        raise EdgeError(f"llama.cpp could not quantise to {target.name} ({last}).")
    progress(1.0)


def fallbacks(path: Path, file_type: int) -> list[str]:
    """Tensors of a quantised file that have another type than its mixture would give them.

    Returns:
        "NAME: TYPE" of each matrix whose rows do not divide into the blocks of the file type.
    """
    block = LARGE_BLOCK if file_type in K_QUANTS else SMALL_BLOCK
    return [
        f"{tensor.name}: {tensor.kind}"
        for tensor in read_gguf(path).tensors
        if len(tensor.shape) == 2
        and not tensor.name.endswith("_norm.weight")
        and tensor.shape[-1] % block
    ]


def fallback_warning(path: Path, file_type: int) -> str | None:
    """The sentence a user should read, or None if every matrix has its intended type."""
    found = fallbacks(path, file_type)
    if not found:
        return None
    return (
        f"{path.name}: llama.cpp stored {len(found)} tensors in other types, because their rows "
        f"do not divide into the format's blocks ({found[0]}); expect another size and quality "
        f"than the name says."
    )


@contextmanager
def _child(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """This module's `main` in a process that has ended when the block is left."""
    process = subprocess.Popen(
        module_command(__name__, *arguments),
        stdin=subprocess.PIPE,  # never written: it closes when this process ends
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**child_environment(), "PYTHONIOENCODING": "utf-8:backslashreplace"},
        encoding="utf-8",
        errors="replace",
    )
    try:
        yield process
    except BaseException:  # Ctrl-C: nobody may go on writing
        process.kill()
        raise
    finally:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def main() -> int:
    """The child: log lines on stdout, the reason of a failure as the last one."""
    from edge.llama_cpp.quantise_child import run_quantiser

    source, target, file_type, *imatrix = sys.argv[1:]
    _end_with_parent(Path(target))
    try:
        importance = read_imatrix(Path(imatrix[0])) if imatrix else None
        run_quantiser(Path(source), Path(target), int(file_type), _say, importance)
    except EdgeError as error:
        _say(f"{error}\n")
        return 1
    return 0


def _say(text: str) -> None:
    """The child's words to its parent, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _end_with_parent(target: Path) -> None:
    """From now on, when standard input closes: remove the unfinished file and end."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose waiting reader blocks the exit
            pass
        target.unlink(missing_ok=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())

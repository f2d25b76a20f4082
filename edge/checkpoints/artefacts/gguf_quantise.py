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

from edge.checkpoints.artefacts.imatrix import check_imatrix, read_imatrix
from edge.errors import EdgeError
from edge.gguf_file import read_tensors
from edge.linux_cpu import child_environment
from edge.side_process import module_command

# Each tensor's line ends "size = 12.34 MiB" or "size = 12.34 MiB -> 5.67 MiB".
SIZE = re.compile(r"size = +([\d.]+) MiB")
MIB = 1 << 20


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
    with child(__name__, arguments) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if match := SIZE.search(line):
                done_mib += float(match[1])
                progress(min(1.0, done_mib / total_mib))
            last = line.strip() or last
    if process.returncode != 0:
        raise EdgeError(f"llama.cpp could not quantise to {target.name} ({last}).")
    progress(1.0)


@contextmanager
def child(module: str, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A module's `main` in a process that has ended when the block is left."""
    process = subprocess.Popen(
        module_command(module, *arguments),
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
    from edge.llamacpp_quantise import run_quantiser

    source, target, file_type, *imatrix = sys.argv[1:]
    end_with_parent(Path(target))
    try:
        importance = read_imatrix(Path(imatrix[0])) if imatrix else None
        run_quantiser(Path(source), Path(target), int(file_type), say, importance)
    except EdgeError as error:
        say(f"{error}\n")
        return 1
    return 0


def say(text: str) -> None:
    """The child's words to its parent, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def end_with_parent(target: Path | None) -> None:
    """From now on, when standard input closes: remove the unfinished file and end."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose waiting reader blocks the exit
            pass
        if target is not None:
            target.unlink(missing_ok=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())

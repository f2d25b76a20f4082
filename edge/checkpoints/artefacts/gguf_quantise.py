"""Quantise a float GGUF file with llama.cpp, in a process of its own.

llama.cpp cannot be interrupted while it quantises, and aborts the process where an
assertion fails. A child can be stopped with Ctrl-C, and its death is a sentence.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from edge.errors import EdgeError

# llama.cpp logs one line a tensor: "[   7/  38] blk.0.attn_q.weight - …".
TENSOR_LINE = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


def quantise(source: Path, target: Path, file_type: int, progress: Callable[[float], None]) -> None:
    """Write `target` from `source`.

    Args:
        source: a float16 or float32 GGUF file.
        target: the file to write.
        file_type: llama.cpp's `llama_ftype`.
        progress: told the finished fraction, 0 to 1.

    Raises:
        EdgeError: llama.cpp refused or died.
    """
    command = [sys.executable, "-m", __name__, str(source), str(target), str(file_type)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    last = ""
    try:
        for line in process.stdout:
            if match := TENSOR_LINE.search(line):
                progress(int(match[1]) / int(match[2]))
            last = line.strip() or last
    except BaseException:  # Ctrl-C: nobody may go on writing
        process.kill()
        raise
    finally:
        process.wait()
    if process.returncode != 0:
        raise EdgeError(f"llama.cpp could not quantise to {target.name} ({last}).")
    progress(1.0)


def main() -> int:
    """The child: log lines on stdout, the reason of a failure as the last one."""
    from edge.llamacpp import quantize

    source, target, file_type = sys.argv[1:]
    try:
        quantize(Path(source), Path(target), int(file_type), lambda line: print(line, flush=True))
    except EdgeError as error:
        print(error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

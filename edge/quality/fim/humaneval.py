r"""HumanEval infilling from a JSON-lines file that the user has, plain or compressed by gzip.

One object a line, as in the benchmark of Bavarian et al. (2022): task_id, prompt, suffix and
canonical_solution are texts, and other fields are left unread. The kind is told by the beginning of
task_id: SingleLineInfilling/HumanEval/0/L0.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.formats.files import strict_json
from edge.quality.fim.hole import Hole

KINDS = {
    "SingleLineInfilling": "humaneval-single-line",
    "MultiLineInfilling": "humaneval-multi-line",
    "RandomSpanInfilling": "humaneval-random-span",
    "RandomSpanInfillingLight": "humaneval-random-span-light",
}
OTHER = "humaneval"
TEXTS = ("task_id", "prompt", "suffix", "canonical_solution")
GZIP_MAGIC = b"\x1f\x8b"
# The largest file of the benchmark has 12 MB.
LARGEST_BYTES = 200_000_000


def read_humaneval(path: Path) -> list[Hole]:
    """Every task of a file, in its order.

    Raises:
        EdgeError: it cannot be read, or a line is not what it should be.
    """
    holes: list[Hole] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        hole = _hole(line, where)
        if hole.name in lines:
            raise EdgeError(
                f"{where} has the task_id {hole.name!r} of line {lines[hole.name]}; leave one out."
            )
        lines[hole.name] = number
        holes.append(hole)
    if not holes:
        raise EdgeError(f"{path} is empty; name a HumanEval infilling file.")
    return holes


def _lines(path: Path) -> list[bytes]:
    r"""Split at \n alone: JSON may hold any other line end."""
    try:
        if path.exists() and not path.is_file():
            raise EdgeError(f"{path} is no file; name one.")
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
        if data.startswith(GZIP_MAGIC):
            with gzip.open(io.BytesIO(data)) as unpacked:
                data = unpacked.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise EdgeError(f"{path} is not there; check the path.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise EdgeError(f"{path} is no whole gzip file; download it again.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise EdgeError(f"{path} cannot be read ({reason}); check its permissions.") from None
    if len(data) > LARGEST_BYTES:
        raise EdgeError(f"{path} has more than {LARGEST_BYTES / 1e6:.0f} MB; give a part of it.")
    return data.split(b"\n")


def _hole(line: bytes, where: str) -> Hole:
    task = _task(line, where)
    for field in TEXTS:
        if not isinstance(task.get(field), str):
            raise EdgeError(f"{where} has no text {field!r}; is it HumanEval infilling?")
    return Hole(
        name=task["task_id"],
        kind=KINDS.get(task["task_id"].partition("/")[0], OTHER),
        prefix=task["prompt"],
        suffix=task["suffix"],
        middle=task["canonical_solution"],
    )


def _task(line: bytes, where: str) -> dict[str, Any]:
    try:
        task = strict_json(line)
    except ValueError as error:
        raise EdgeError(f"{where} is no JSON ({error}); download the file again.") from None
    if not isinstance(task, dict):
        raise EdgeError(f"{where} holds no JSON object; is it HumanEval infilling?")
    return task

r"""Holes with known middles: cut from source text, or read from a HumanEval infilling file.

Bavarian et al. (2022, arXiv:2207.14255, section 3) cut a document at two uniformly chosen
characters. Here the first cut is uniform over all characters of all files, and the second depends
on the kind:

    single-line   uniform over the rest of the same line, including its end
    multi-line    2 to 6 line breaks later, uniform over that line, including both ends

Blank and repeated spans are drawn again, and no cut is between the \r and the \n of a line break.
Every draw is a hash of the seed, the kind and its number: it is the same on every machine, and the
first 20 of 100 samples are those of a run with 20.
"""

import gzip
import hashlib
import io
import itertools
import json
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import msgspec

from edge.errors import EdgeError
from edge.formats.files import read_small_file, strict_json
from edge.quality.corpus import SourceText

SINGLE_LINE = "single-line"
KINDS = (SINGLE_LINE, "multi-line")
LEAST_BREAKS, MOST_BREAKS = 2, 6
# Draws without a new hole before giving up.
MOST_ATTEMPTS = 1000
# Text kept on each side of a hole: more than any window, and less than all of a large file.
AROUND_CHARACTERS = 200_000
HUMANEVAL_KINDS = {
    "SingleLineInfilling": "humaneval-single-line",
    "MultiLineInfilling": "humaneval-multi-line",
    "RandomSpanInfilling": "humaneval-random-span",
    "RandomSpanInfillingLight": "humaneval-random-span-light",
}
GZIP_MAGIC = b"\x1f\x8b"
# The largest file of the benchmark has 12 MB.
LARGEST_BYTES = 200_000_000


@dataclass(frozen=True)
class Hole:
    """A middle and the text on both sides; the name is FILE:LINE:COL or the id of a task."""

    name: str
    kind: str
    prefix: str
    suffix: str
    middle: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(astuple(self)).encode()).hexdigest()


def draw_holes(texts: Sequence[SourceText], kind: str, count: int, seed: int) -> list[Hole]:
    """Distinct holes of one kind; an EdgeError if the texts have too few."""
    ends = list(itertools.accumulate(len(text.text) for text in texts))
    spans: dict[tuple[int, int, int], Hole] = {}
    for sample in range(count):
        for attempt in range(MOST_ATTEMPTS if texts else 0):
            span = _draw(texts, ends, kind, _numbers(f"{seed}/{kind}/{sample}/{attempt}"))
            if span is not None and span not in spans:
                break
        else:
            raise EdgeError(
                f"only {sample} different {kind} holes were found; give a smaller --samples or "
                f"more code."
            )
        spans[span] = _cut(texts[span[0]], kind, *span[1:])
    return list(spans.values())


def _numbers(label: str) -> Iterator[int]:
    """Numbers below 2**256 from hashes of a label."""
    for i in itertools.count(1):
        yield int.from_bytes(hashlib.sha256(f"{label}/{i}".encode()).digest())


def _draw(
    texts: Sequence[SourceText], ends: Sequence[int], kind: str, numbers: Iterator[int]
) -> tuple[int, int, int] | None:
    """File, begin and end of a hole; None if the draw is not a hole."""
    place = next(numbers) % ends[-1]
    file = bisect_right(ends, place)
    text = texts[file].text
    begin = place - (ends[file] - len(text))
    length = _line_end(text, begin) - begin
    if kind != SINGLE_LINE:
        end = _end_below(text, begin, numbers)
    else:
        end = begin + 1 + next(numbers) % length if length > 0 else None
    splits_break = begin > 0 and text[begin - 1 : begin + 1] == "\r\n"
    if end is None or splits_break or not text[begin:end].strip():
        return None
    return file, begin, end


def _end_below(text: str, begin: int, numbers: Iterator[int]) -> int | None:
    line = begin
    for _ in range(LEAST_BREAKS + next(numbers) % (MOST_BREAKS - LEAST_BREAKS + 1)):
        line = text.find("\n", line) + 1
        if not line:
            return None
    return line + next(numbers) % (_line_end(text, line) - line + 1)


def _line_end(text: str, place: int) -> int:
    """Index of the line break, or of the end of the text."""
    newline = text.find("\n", place)
    if newline < 0:
        return len(text)
    return newline - 1 if newline > place and text[newline - 1] == "\r" else newline


def _cut(source: SourceText, kind: str, begin: int, end: int) -> Hole:
    text = source.text
    line, column = text.count("\n", 0, begin) + 1, begin - text.rfind("\n", 0, begin)
    return Hole(
        name=f"{source.name}:{line}:{column}",
        kind=kind,
        prefix=text[max(0, begin - AROUND_CHARACTERS) : begin],
        suffix=text[end : end + AROUND_CHARACTERS],
        middle=text[begin:end],
    )


class _Task(msgspec.Struct):
    task_id: str
    prompt: str
    suffix: str
    canonical_solution: str


def read_humaneval(path: Path, most: int | None = None) -> list[Hole]:
    """Tasks of a JSON-lines file, plain or gzip, as published by Bavarian et al. (2022).

    The start of a task_id gives the kind; the first `most` of each kind are used, None for all.
    """
    found: dict[str, Hole] = {}
    # Split at \n only: JSON strings may contain other line ends.
    for number, line in enumerate(_content(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        hole = _task_hole(line, where)
        if found.setdefault(hole.name, hole) is not hole:
            raise EdgeError(f"{where} has the task_id {hole.name!r} of an earlier line.")
    if not found:
        raise EdgeError(f"{path} is empty; name a HumanEval infilling file.")
    kinds = dict.fromkeys(hole.kind for hole in found.values())
    of_kinds = ([hole for hole in found.values() if hole.kind == kind] for kind in kinds)
    return [hole for holes in of_kinds for hole in holes[:most]]


def _content(path: Path) -> bytes:
    data = read_small_file(path, LARGEST_BYTES)
    if not data.startswith(GZIP_MAGIC):
        return data
    try:
        with gzip.open(io.BytesIO(data)) as unpacked:
            data = unpacked.read(LARGEST_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise EdgeError(f"{path} is not a whole gzip file; download it again.") from None
    if len(data) > LARGEST_BYTES:
        raise EdgeError(f"{path} has more than {LARGEST_BYTES // 10**6} MB; give a part of it.")
    return data


def _task_hole(line: bytes, where: str) -> Hole:
    try:
        task = msgspec.convert(strict_json(line), _Task)
    except ValueError as error:
        raise EdgeError(f"{where} is not a HumanEval infilling task ({error}).") from None
    kind = HUMANEVAL_KINDS.get(task.task_id.partition("/")[0], "humaneval")
    return Hole(task.task_id, kind, task.prompt, task.suffix, task.canonical_solution)

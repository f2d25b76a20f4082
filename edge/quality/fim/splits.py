r"""Held-out middles: spans cut out of source text at characters, as in training.

Bavarian et al. (2022, arXiv:2207.14255, section 3) cut a document at two characters chosen
uniformly, wherever they fall; so were Stable Code (its report, section 4.4) and the demo
trained. Here the first cut is uniform over all characters of all files, so that a file counts by
its size, and the second is bound to what the kind says:

    single-line   uniform over the rest of the same line, its end included
    multi-line    2 to 6 line breaks further on, uniform over that line, its two ends included

A span of nothing but whitespace is drawn again, and so is one that was drawn before. No cut
falls between the \r and the \n of a line break.

Every draw is a hash of the seed, the kind and its own number: the same on every machine and
with every Python, and the first 20 of 100 samples are the 20 of a smaller run.
"""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from edge.errors import EdgeError
from edge.quality.fim.hole import Hole

SINGLE_LINE, MULTI_LINE = "single-line", "multi-line"
KINDS = (SINGLE_LINE, MULTI_LINE)
LEAST_BREAKS, MOST_BREAKS = 2, 6
# So often in vain, and there is hardly anything to find.
MOST_ATTEMPTS = 1000
# Kept on either side of a hole: more than any window holds, and not a large file once per hole.
AROUND_CHARACTERS = 200_000


class Named(Protocol):
    """A file's text."""

    @property
    def name(self) -> str:
        """Relative to the corpus."""

    @property
    def text(self) -> str:
        """Line ends as they are."""


def draw_holes(texts: Sequence[Named], kind: str, count: int, seed: int) -> list[Hole]:
    """Holes of one kind, all different, with at most AROUND_CHARACTERS on either side.

    Args:
        texts: the corpus; its order is part of what the seed means.
        kind: one of `KINDS`.
        count: how many.
        seed: any number.

    Raises:
        EdgeError: the corpus has too few.
    """
    ends = list(itertools.accumulate(len(text.text) for text in texts))
    holes: list[Hole] = []
    seen: set[tuple[int, int, int]] = set()
    for sample in range(count):
        for attempt in range(MOST_ATTEMPTS):
            dice = _Dice(f"{seed}/{kind}/{sample}/{attempt}")
            span = _draw(texts, ends, kind, dice)
            if span is not None and span not in seen:
                break
        else:
            raise EdgeError(
                f"the corpus has hardly more than {sample} different {kind} holes; ask for fewer "
                f"--samples, or name more code."
            )
        seen.add(span)
        holes.append(_hole(texts[span[0]], kind, *span[1:]))
    return holes


class _Dice:
    """Numbers that follow from a text alone."""

    def __init__(self, label: str):
        self._label = label
        self._throws = 0

    def below(self, count: int) -> int:
        """A number from 0 to count - 1; uneven by less than one part in 2**200."""
        self._throws += 1
        data = f"{self._label}/{self._throws}".encode()
        return int.from_bytes(hashlib.sha256(data).digest()) % count


def _draw(
    texts: Sequence[Named], ends: Sequence[int], kind: str, dice: _Dice
) -> tuple[int, int, int] | None:
    """A file, where the hole begins and ends in it; None if that cannot be a hole."""
    if not ends or not ends[-1]:
        return None
    place = dice.below(ends[-1])
    file = bisect_right(ends, place)
    text = texts[file].text
    begin = place - (ends[file] - len(text))
    end = (_end_in_line if kind == SINGLE_LINE else _end_below)(text, begin, dice)
    if end is None or not text[begin:end].strip() or _splits_break(text, begin):
        return None
    return file, begin, end


def _end_in_line(text: str, begin: int, dice: _Dice) -> int | None:
    length = _line_end(text, begin) - begin
    return begin + 1 + dice.below(length) if length > 0 else None


def _end_below(text: str, begin: int, dice: _Dice) -> int | None:
    line = begin
    for _ in range(LEAST_BREAKS + dice.below(MOST_BREAKS - LEAST_BREAKS + 1)):
        line = text.find("\n", line) + 1
        if not line:
            return None
    return line + dice.below(_line_end(text, line) - line + 1)


def _line_end(text: str, place: int) -> int:
    """Where the line's break begins, or the text ends."""
    newline = text.find("\n", place)
    if newline < 0:
        return len(text)
    return newline - 1 if newline > place and text[newline - 1] == "\r" else newline


def _splits_break(text: str, place: int) -> bool:
    return text[place - 1 : place + 1] == "\r\n" if place else False


def _hole(source: Named, kind: str, begin: int, end: int) -> Hole:
    text = source.text
    line_begin = text.rfind("\n", 0, begin) + 1
    line = text.count("\n", 0, begin) + 1
    return Hole(
        name=f"{source.name}:{line}:{begin - line_begin + 1}",
        kind=kind,
        prefix=text[max(0, begin - AROUND_CHARACTERS) : begin],
        suffix=text[end : end + AROUND_CHARACTERS],
        middle=text[begin:end],
    )

"""Text and numbers made fit for tables, plots and Markdown, whoever wrote them."""

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

NOT_MEASURED = "—"
# Control characters, those that turn the direction of writing, and the rest of their kind.
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
# Characters that would begin a link, an image, a tag, code or another cell. Underscores within
# words, as in Q5_K_M, mean nothing.
MARKUP = re.compile(r"[\\`*\[\]<>|~&]")


@lru_cache(maxsize=10_000)  # ten thousand profiles say the same few things
def plain(text: str, most: int = 80) -> str:
    """One line that any output can hold, cut to `most` characters.

    What cannot be seen becomes a replacement character, white space one space.
    """
    words = " ".join(text[: 20 * most].split())
    is_seen = (unicodedata.category(character) not in UNSEEN for character in words)
    seen = "".join(
        c if ok else "\N{REPLACEMENT CHARACTER}" for c, ok in zip(words, is_seen, strict=True)
    )
    return seen if len(seen) <= most else f"{seen[: most - 1].rstrip()}…"


def figure(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, or all before the point; a dash for None."""
    if value is None:
        return NOT_MEASURED
    if not value:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{digits}g}"
    before = math.floor(math.log10(abs(value))) + 1
    return f"{value:.{max(digits - before, 0)}f}"


def share(value: float | None) -> str:
    """A fraction as per cent."""
    return NOT_MEASURED if value is None else f"{value:.0%}"


def escape(text: str) -> str:
    """Text that a viewer of Markdown shows as it is."""
    return MARKUP.sub(r"\\\g<0>", text)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], words: Sequence[str]) -> str:
    """An aligned table of texts that are already escaped.

    Args:
        head: names of the columns.
        lines: the cells of each line.
        words: names of columns that hold text; figures are aligned to the right.
    """
    widths = [max(3, *map(len, column)) for column in zip(head, *lines, strict=True)]
    is_text = [name in words for name in head]
    rule = [
        "-" * w if text else "-" * (w - 1) + ":" for w, text in zip(widths, is_text, strict=True)
    ]
    return "\n".join(_line(line, widths, is_text) for line in (head, rule, *lines))


def _line(cells: Sequence[str], widths: Sequence[int], is_text: Sequence[bool]) -> str:
    padded = [
        cell.ljust(width) if text else cell.rjust(width)
        for cell, width, text in zip(cells, widths, is_text, strict=True)
    ]
    return f"| {' | '.join(padded)} |"

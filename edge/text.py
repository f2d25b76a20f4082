"""Text and numbers for tables, plots and Markdown, safe for untrusted input."""

import math
import re
from collections.abc import Sequence
from functools import lru_cache

from edge.errors import UNSAFE

NOT_MEASURED = "—"
# Characters that begin a link, an image, a tag, code or a cell. Underscores within words, as in
# Q5_K_M, need no escape.
MARKUP = re.compile(r"[\\`*\[\]<>|~&]")


@lru_cache(maxsize=10_000)  # many profiles have the same few texts
def plain(text: str, most: int = 80) -> str:
    """Text on one line, cut to `most` characters, unsafe characters replaced."""
    line = UNSAFE.sub("\N{REPLACEMENT CHARACTER}", " ".join(text[: 20 * most].split()))
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def figure(value: float | None, digits: int = 3) -> str:
    """A number with that many significant digits, or all before the point; a dash for None."""
    if value is None:
        return NOT_MEASURED
    if not value:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{digits}g}"
    before = math.floor(math.log10(abs(value))) + 1
    return f"{value:.{max(digits - before, 0)}f}"


def share(value: float | None) -> str:
    """A fraction in per cent; a dash for None."""
    return NOT_MEASURED if value is None else f"{value:.0%}"


def size(count_bytes: float) -> str:
    """Bytes in MB or GB (powers of ten)."""
    return f"{count_bytes / 1e9:.1f} GB" if count_bytes >= 1e9 else f"{count_bytes / 1e6:.0f} MB"


def escape(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    return MARKUP.sub(r"\\\g<0>", text)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], words: Sequence[str]) -> str:
    """An aligned table of escaped cells; columns not named in `words` are aligned to the right."""
    columns = []
    for name, *cells in zip(head, *lines, strict=True):
        width = max(3, *map(len, (name, *cells)))
        if name in words:
            columns.append([cell.ljust(width) for cell in (name, "-" * width, *cells)])
        else:
            rule = "-" * (width - 1) + ":"
            columns.append([cell.rjust(width) for cell in (name, rule, *cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))

"""Text and numbers for tables, plots and Markdown, safe for untrusted input."""

import csv
import io
import math
import re
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from edge.errors import UNSAFE

NOT_MEASURED = "—"
# Characters that begin a link, an image, a tag, code or a cell. Underscores within words, as in
# Q5_K_M, need no escape.
MARKUP = re.compile(r"[\\`*\[\]<>|~&]")
# Spreadsheets run cells that begin with these as formulas.
FORMULA = ("=", "+", "-", "@")
GAP = "  "
# Columns that a cut cell keeps while others can be left out, and at least.
GOOD_WIDTH, LEAST_WIDTH = 24, 6


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


def percent(value: float | None) -> str:
    """A fraction in per cent with two digits, or that it is above 1; a dash for None."""
    if value is None:
        return NOT_MEASURED
    return f"{figure(100 * value, 2)}%" if value <= 1 else "over 100%"


def size(count_bytes: float) -> str:
    """Bytes in MB or GB (powers of ten)."""
    return f"{count_bytes / 1e9:.1f} GB" if count_bytes >= 1e9 else f"{count_bytes / 1e6:.0f} MB"


def escape(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    return MARKUP.sub(r"\\\g<0>", text)


def columns(text: str) -> int:
    """Columns that text takes on a terminal, where East Asian characters take two."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def cut(text: str, most: int) -> str:
    """Text, or its beginning and an ellipsis, on that many columns."""
    if columns(text) <= most:
        return text
    while text and columns(text) > most - 1:
        text = text[:-1]
    return f"{text.rstrip()}…"


@dataclass(frozen=True)
class Cell:
    """Text and, for sorting, the number; None if not measured."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Head and lines of equal length; `words` are the columns of text, aligned to the left.

    Where the terminal is narrow, long texts in `cut` are cut, columns in `dropped` left out in that
    order, and then `cut` cut further.
    """

    head: Sequence[str]
    lines: Sequence[Sequence[Cell]]
    words: Sequence[str]
    dropped: Sequence[str] = ()
    cut: Sequence[str] = ()

    def markdown(self) -> str:
        """The whole table, aligned and escaped."""
        drawn = []
        for name, cells in self._columns():
            texts = [escape(text) for text in (name, *cells)]
            width, is_text = max(3, *map(columns, texts)), name in self.words
            rule = "-" * (width - 1) + ("-" if is_text else ":")
            drawn.append(_aligned([texts[0], rule, *texts[1:]], width, is_text))
        return "\n".join(f"| {' | '.join(line)} |" for line in zip(*drawn, strict=True))

    def plain(self, width: int | None = None) -> tuple[str, list[str]]:
        """The table without markup, in `width` columns if given; and the columns left out."""
        found = dict(self._columns())
        widths = {name: max(map(columns, (name, *cells))) for name, cells in found.items()}

        def excess() -> int:
            used = sum(widths.values()) + len(GAP) * (len(widths) - 1)
            return 0 if width is None else max(0, used - width)

        def shorten(least: int) -> None:
            for name in sorted(set(self.cut) & set(widths), key=lambda name: -widths[name]):
                widths[name] = max(min(least, widths[name]), widths[name] - excess())

        shorten(GOOD_WIDTH)
        for name in self.dropped:
            if name in widths and excess():
                del widths[name]
        shorten(LEAST_WIDTH)
        drawn = [
            _aligned([cut(text, w) for text in (name, *found[name])], w, name in self.words)
            for name, w in widths.items()
        ]
        lines = (GAP.join(line).rstrip() for line in zip(*drawn, strict=True))
        return "\n".join(lines), [name for name in found if name not in widths]

    def _columns(self) -> list[tuple[str, list[str]]]:
        lines = ([cell.text for cell in line] for line in self.lines)
        return [(name, cells) for name, *cells in zip(self.head, *lines, strict=True)]


def _aligned(texts: Sequence[str], width: int, is_text: bool) -> list[str]:
    spaces = [" " * (width - columns(text)) for text in texts]
    pairs = zip(texts, spaces, strict=True)
    return [text + space if is_text else space + text for text, space in pairs]


def texts_table(
    head: Sequence[str], lines: Sequence[Sequence[str]], words: Sequence[str], **narrow: Any
) -> Table:
    """A table of texts; `narrow` are `dropped` and `cut`."""
    return Table(head, [[Cell(text) for text in line] for line in lines], words, **narrow)


@dataclass(frozen=True)
class Layout:
    """What a terminal of `width` columns shows; with `is_wide` everything, else what fits."""

    width: int
    is_wide: bool = False

    def table(self, table: Table) -> str:
        text, gone = table.plain(None if self.is_wide else self.width)
        more = [self.wrapped(f"--wide also shows {', '.join(gone)}")] if gone else []
        return "\n".join([text, *more])

    def wrapped(self, text: str, begin: str = "") -> str:
        """Lines that break between words, indented like the first, which has `begin`."""
        return textwrap.fill(
            text,
            self.width,
            initial_indent=begin,
            subsequent_indent=" " * len(begin),
            break_long_words=False,
            break_on_hyphens=False,
        )

    def notes(self, texts: Sequence[str], whole: Collection[str] = ()) -> str:
        """A line per text, cut where it does not fit, or several for those in `whole`."""
        shortened = [] if self.is_wide else [text for text in texts if text not in whole]
        lines = [
            cut(f"- {text}", self.width) if text in shortened else self.wrapped(text, "- ")
            for text in texts
        ]
        is_cut = any(columns(text) > self.width - 2 for text in shortened)
        return "\n".join([*lines, *(["--wide shows the notes in full"] if is_cut else [])])


def csv_text(rows: Iterable[Mapping[str, Any]], head: Sequence[str] = ()) -> str:
    """CSV with a line per row, of the columns in `head`, by default all; empty for None.

    Nested objects are columns name_part, and a pair of numbers name_low and name_high.
    """
    lines = [dict(_flat(row)) for row in rows]
    head = head or list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, head, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_cell(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def _flat(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}_{part}", inner) for part, inner in _flat(value))
        elif isinstance(value, list | tuple) and [type(item) for item in value] == [float] * 2:
            yield from ((f"{name}_low", value[0]), (f"{name}_high", value[1]))
        elif isinstance(value, list | tuple):
            yield name, "; ".join(map(str, value))
        else:
            yield name, value


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = plain(value, 4000)
    return f"'{text}" if text.startswith(FORMULA) else text

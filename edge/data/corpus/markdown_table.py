"""Reformats the pipe tables of a Markdown file so that their columns line up.

Usage:
    python markdown_table.py README.md            # print the result
    python markdown_table.py --write docs/*.md    # change the files
    python markdown_table.py --check docs/*.md    # exit 1 if something would change
"""
import argparse
import sys
import unicodedata
from enum import Enum
from pathlib import Path


class Align(Enum):
    NONE = "none"
    LEFT = "left"
    RIGHT = "right"
    CENTRE = "centre"


def display_width(text):
    """Columns a terminal needs for `text`: wide East Asian characters take two, accents none."""
    width = 0
    for char in text:
        if unicodedata.combining(char):
            continue
        width += 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1
    return width


def split_row(line):
    """The cells of one line. A pipe in backticks or behind a backslash is part of its cell."""
    line = line.strip()
    if line.startswith("|"):
        line = line[1:]
    cells, cell, in_code, escaped = [], [], False, False
    for char in line:
        if escaped:
            cell.append(char)
            escaped = False
        elif char == "\\":
            cell.append(char)
            escaped = True
        elif char == "`":
            in_code = not in_code
            cell.append(char)
        elif char == "|" and not in_code:
            cells.append("".join(cell).strip())
            cell = []
        else:
            cell.append(char)
    if "".join(cell).strip():
        cells.append("".join(cell).strip())
    return cells


def parse_align(cell):
    """The alignment a delimiter cell like `:---:` stands for, or None if it is no delimiter."""
    dashes = cell.removeprefix(":").removesuffix(":")
    if not dashes or set(dashes) != {"-"}:
        return None
    left, right = cell.startswith(":"), cell.endswith(":")
    if left and right:
        return Align.CENTRE
    if right:
        return Align.RIGHT
    return Align.LEFT if left else Align.NONE


def is_delimiter(line):
    return "-" in line and "|" in line and all(parse_align(cell) for cell in split_row(line))


def pad(text, width, align):
    missing = width - display_width(text)
    if align is Align.RIGHT:
        return " " * missing + text
    if align is Align.CENTRE:
        before = missing // 2
        return " " * before + text + " " * (missing - before)
    return text + " " * missing


def delimiter(width, align):
    if align is Align.CENTRE:
        return ":" + "-" * (width - 2) + ":"
    if align is Align.RIGHT:
        return "-" * (width - 1) + ":"
    if align is Align.LEFT:
        return ":" + "-" * (width - 1)
    return "-" * width


def format_table(lines):
    header, marks, *body = [split_row(line) for line in lines]
    aligns = [parse_align(cell) for cell in marks]
    columns = max(len(row) for row in [header, *body])
    aligns += [Align.NONE] * (columns - len(aligns))
    rows = [row + [""] * (columns - len(row)) for row in [header, *body]]
    # Three is the shortest delimiter that every renderer takes.
    widths = [max(3, *(display_width(row[i]) for row in rows)) for i in range(columns)]

    def render(cells):
        return "| " + " | ".join(cells) + " |"

    result = [render(pad(cell, w, a) for cell, w, a in zip(rows[0], widths, aligns))]
    result.append(render(delimiter(w, a) for w, a in zip(widths, aligns)))
    for row in rows[1:]:
        result.append(render(pad(cell, w, a) for cell, w, a in zip(row, widths, aligns)))
    return result


def format_document(text):
    lines = text.split("\n")
    result = []
    fence = None
    i = 0
    while i < len(lines):
        line = lines[i]
        marker = line.lstrip()[:3]
        if fence is None and marker in ("```", "~~~"):
            fence = marker
        elif fence is not None:
            if marker == fence:
                fence = None
        elif "|" in line and i + 1 < len(lines) and is_delimiter(lines[i + 1]):
            end = i + 2
            while end < len(lines) and "|" in lines[end] and lines[end].strip():
                end += 1
            indent = line[: len(line) - len(line.lstrip())]
            result += [indent + row for row in format_table(lines[i:end])]
            i = end
            continue
        result.append(line)
        i += 1
    return "\n".join(result)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--write", action="store_true", help="change the files in place")
    group.add_argument("--check", action="store_true", help="only say which files would change")
    options = parser.parse_args(argv)

    changed = 0
    for path in options.files:
        before = path.read_text(encoding="utf-8")
        after = format_document(before)
        if options.write:
            if after != before:
                path.write_text(after, encoding="utf-8")
        elif options.check:
            if after != before:
                print(f"{path}: tables are not aligned")
                changed += 1
        else:
            sys.stdout.write(after)
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())

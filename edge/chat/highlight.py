"""Colours for code in an answer that is still being written.

Prose passes at once. What stands between ``` fences is coloured line by line as the lines end,
since a colour cannot be taken back. The colours are all that is added: without them the output
is the input, character by character, however it came in pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from edge.chat.terminal import RESET

# A line that begins a block: the fence and the language; and what could become one.
OPENING = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`\n]*\n?$")
FENCE_BEGUN = re.compile(r"[ \t]*(`{0,2}|~{0,2}|`{3,}[^`\n]*|~{3,}[^\n]*)$")
# So much of a block is read again for each line, to know whether it is within a string.
LINES_REREAD = 100
# Not str.splitlines, which also ends lines at characters that no terminal does.
LINES = re.compile(r"[^\n]*\n|[^\n]+")

# Pygments' token types, the most special first, as colours of the terminal's own palette.
COLOURS = (
    ("Comment.Preproc", "35"),
    ("Comment", "90"),
    ("Keyword.Constant", "36"),
    ("Keyword.Type", "36"),
    ("Keyword", "35"),
    ("Operator.Word", "35"),
    ("Literal.String.Doc", "90"),
    ("Literal.String.Interpol", "33"),
    ("Literal.String.Escape", "33"),
    ("Literal.String", "32"),
    ("Literal.Number", "36"),
    ("Name.Function", "34"),
    ("Name.Class", "34"),
    ("Name.Tag", "34"),
    ("Name.Attribute", "33"),
    ("Name.Decorator", "33"),
    ("Name.Builtin", "36"),
    ("Name.Exception", "36"),
    ("Generic.Deleted", "31"),
    ("Generic.Inserted", "32"),
    ("Generic.Heading", "34"),
    ("Generic.Subheading", "34"),
)


class Plain:
    """Stands in for a highlighter where there are no colours."""

    def add(self, text: str) -> str:
        """The text itself."""
        return text

    def finish(self) -> str:
        """Nothing was held back."""
        return ""


class Highlighter:
    """One answer's text in, the same text with colours out."""

    def __init__(self) -> None:
        self._line = ""  # of the current line what was not given out yet
        self._line_begun = False  # whether some of it was
        self._block: _Block | None = None

    def add(self, text: str) -> str:
        """What can be shown now."""
        return "".join(self._add(part) for part in LINES.findall(text))

    def finish(self) -> str:
        """The rest of a text that ends here."""
        rest, self._line = self._line, ""
        if self._block is None or self._line_begun or not rest:
            return rest
        return rest if self._block.is_closed_by(rest) else self._block.colour(rest)

    def _add(self, part: str) -> str:
        """`part` is of one line, its end included if it is there."""
        self._line += part
        if part.endswith("\n"):
            return self._end_line()
        return "" if self._holds_back() else self._give_out()

    def _holds_back(self) -> bool:
        """A line that may be a fence, and code that is coloured, wait for their end."""
        if self._line_begun:
            return False
        if self._block is not None and self._block.lexer is not None:
            return True
        return FENCE_BEGUN.match(self._line) is not None

    def _give_out(self) -> str:
        line, self._line = self._line, ""
        self._line_begun = True
        return line

    def _end_line(self) -> str:
        line, self._line = self._line, ""
        begun, self._line_begun = self._line_begun, False
        if begun:
            return line
        if self._block is None:
            fence = OPENING.match(line)
            if fence is not None:
                self._block = _Block(fence[1], fence[2])
            return line
        if self._block.is_closed_by(line):
            self._block = None
            return line
        return self._block.colour(line)


class _Block:
    """The code between two fences."""

    def __init__(self, fence: str, language: str):
        self._fence = fence
        self._lines: list[str] = []
        self.lexer = _find_lexer(language)

    def is_closed_by(self, line: str) -> bool:
        """A fence of the same kind, at least as long, and nothing else."""
        line = line.strip()
        return line.startswith(self._fence) and not line.strip(self._fence[0])

    def colour(self, line: str) -> str:
        """A whole line of the block with its colours."""
        if self.lexer is None:
            return line
        if len(self._lines) >= LINES_REREAD:
            self._lines.clear()
        before = "".join(self._lines)
        self._lines.append(line)
        return "".join(_coloured(*piece) for piece in _pieces(self.lexer, before, line))


def _pieces(lexer: Any, before: str, line: str) -> Iterator[tuple[str, str]]:
    """Token types and texts of a line after what came before it; together they are the line."""
    position = 0
    for start, kind, value in lexer.get_tokens_unprocessed(before + line):
        text = value[max(0, len(before) + position - start) :]
        if text and start + len(value) > len(before):
            yield str(kind), text
            position += len(text)
    if position < len(line):  # a lexer that passes over something
        yield "", line[position:]


def _coloured(kind: str, text: str) -> str:
    code = next((code for name, code in COLOURS if kind.startswith(f"Token.{name}")), None)
    body = text.rstrip("\n")
    if code is None or not body.strip():
        return text
    # No colour reaches over a line's end: each line can be cut out on its own.
    lines = [f"\x1b[{code}m{part}{RESET}" if part else "" for part in body.split("\n")]
    return "\n".join(lines) + text[len(body) :]


def _find_lexer(language: str) -> Any:
    """Pygments' lexer of a language, None if there is none."""
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
    from pygments.util import ClassNotFound  # type: ignore[import-untyped]

    try:
        return get_lexer_by_name(language) if language else None
    except ClassNotFound:
        return None

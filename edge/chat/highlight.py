"""Colours for code in an answer that is still being written: line by line as lines end."""

import re
from typing import Any

# A line that begins a block: the fence and the language; and what could become one.
OPENING = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`\n]*\n?$")
FENCE_BEGUN = re.compile(r"[ \t]*(`{0,2}|~{0,2}|`{3,}[^`\n]*|~{3,}[^\n]*)$")
# So much of a block is read again for each line, which may be within a string.
LINES_REREAD = 100


class Highlighter:
    """One answer's text in, the same text with colours out, or as it is."""

    def __init__(self, colour: bool = True) -> None:
        self._colour = colour
        self._line = ""  # of the current line what was not given out yet
        self._line_begun = False  # some of it was
        self._fence = ""  # of the block under way
        self._lexer: Any = None
        self._block: list[str] = []

    def add(self, text: str) -> str:
        """Text that can be shown now."""
        if not self._colour:
            return text
        *ended, rest = re.split(r"(?<=\n)", text)
        return "".join(map(self._end_line, ended)) + self._add_rest(rest)

    def finish(self) -> str:
        """The rest of a text that ends here."""
        return self._end_line("") if self._line else ""

    def _add_rest(self, text: str) -> str:
        self._line += text
        waits = self._lexer is not None or FENCE_BEGUN.match(self._line)
        if not self._line or (waits and not self._line_begun):
            return ""
        line, self._line, self._line_begun = self._line, "", True
        return line

    def _end_line(self, end: str) -> str:
        line, self._line = self._line + end, ""
        begun, self._line_begun = self._line_begun, False
        if begun:
            return line
        if not self._fence:
            fence = OPENING.match(line)
            if fence is not None:
                self._fence, self._lexer, self._block = fence[1], _find_lexer(fence[2]), []
            return line
        bare = line.strip()
        if bare.startswith(self._fence) and not bare.strip(self._fence[0]):
            self._fence, self._lexer = "", None
        return line if self._lexer is None else self._coloured(line)

    def _coloured(self, line: str) -> str:
        from pygments import highlight  # type: ignore[import-untyped]
        from pygments.formatters import TerminalFormatter  # type: ignore[import-untyped]

        if len(self._block) >= LINES_REREAD:
            self._block.clear()
        self._block.append(line)
        found = highlight("".join(self._block), self._lexer, TerminalFormatter()).split("\n")
        return f"{found[-2]}\n" if line.endswith("\n") else found[-1]


def _find_lexer(language: str) -> Any:
    """Pygments' lexer of a language, None if there is none."""
    # Here: an answer without code, or without colours, needs none.
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
    from pygments.util import ClassNotFound  # type: ignore[import-untyped]

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False) if language else None
    except ClassNotFound:
        return None

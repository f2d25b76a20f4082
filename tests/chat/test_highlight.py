"""Colours while an answer streams: nothing but colours is added, whatever the pieces."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from edge.chat.screen import LINES_REREAD, Highlighter

ANSI = re.compile(r"\x1b\[[0-9;]*m")
CODE = '''Look:

```python
def f(x):  # a comment
    """Two
    lines."""
    return f"{x}" + 'ü'
```

    ~~~js
    let a = `x
    y`;
    ~~~
Done, with `code` and ``` in a line.
'''
COLOURED = {3, 4, 5, 6, 10, 11}
PIECES = st.sampled_from(
    ["```", "`", "~~~", "python\n", "c\n", "\n", " ", "def f():", '"""', "x = 1", "\t", "\u2028",
     "text", "'", "/*", "é", "\x0c", "````", "none\n", "#", "\\"]
)  # fmt: skip


def coloured(text, sizes=()):
    highlighter, out, at = Highlighter(), "", 0
    for size in sizes:
        out += highlighter.add(text[at : at + size])
        at += size
    return out + highlighter.add(text[at:]) + highlighter.finish()


@given(st.lists(PIECES, max_size=40).map("".join), st.lists(st.integers(0, 9), max_size=60))
@example("~~~python\nx", [])
def test_without_its_colours_the_output_is_the_input(text, sizes):
    assert ANSI.sub("", coloured(text, sizes)) == text


def test_code_is_coloured_and_prose_is_not():
    lines = coloured(CODE).split("\n")
    assert {place for place, line in enumerate(lines) if ANSI.search(line)} == COLOURED
    code = ANSI.search(lines[4])[0]
    assert lines[5].startswith(f'{code}    lines."""')  # what is a string is known from above
    assert all(not ANSI.search(line) or line.rstrip().endswith("m") for line in lines)


def test_prose_streams_at_once_and_code_line_by_line():
    highlighter = Highlighter()
    for pieces in (["H", "i", " `x`", "\n```\n"], ["a", " b", "\n```\n"]):
        assert [highlighter.add(piece) for piece in pieces] == pieces
    highlighter.add("```python\n")
    assert highlighter.add("x = ") == ""
    assert ANSI.sub("", highlighter.add("1\ny")) == "x = 1\n"
    assert ANSI.sub("", highlighter.finish()) == "y"


def test_a_long_block_keeps_its_colours():
    out = coloured("```python\n" + "x = 'a'\n" * (2 * LINES_REREAD + 5) + "```\n")
    assert sum("\x1b" in line for line in out.split("\n")) == 2 * LINES_REREAD + 5

"""Colours while an answer streams: nothing but colours is added, whatever the pieces."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.chat.highlight import LINES_REREAD, Highlighter

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
def test_without_its_colours_the_output_is_the_input(text, sizes):
    assert ANSI.sub("", coloured(text, sizes)) == text


@given(st.lists(st.integers(0, 9), max_size=200))
def test_pieces_make_no_difference(sizes):
    assert coloured(CODE, sizes) == coloured(CODE)


def test_code_is_coloured_and_prose_is_not():
    lines = coloured(CODE).split("\n")
    assert [bool(ANSI.search(line)) for line in lines] == [
        *[False] * 3, True, True, True, True, *[False] * 3, True, True, *[False] * 3,
    ]  # fmt: skip
    assert lines[3].startswith("\x1b[35mdef\x1b[0m")
    assert lines[5] == '\x1b[90m    lines."""\x1b[0m'  # what is a string is known from above


def test_no_colour_reaches_over_a_line():
    for line in coloured(CODE).split("\n"):
        codes = ANSI.findall(line)
        assert codes[1::2] == ["\x1b[0m"] * (len(codes) // 2)
        assert len(codes) % 2 == 0


def test_prose_and_code_without_a_language_stream_at_once():
    highlighter = Highlighter()
    assert [highlighter.add(c) for c in "Hi `x`"] == list("Hi `x`")
    highlighter.add("\n```\n")
    assert [highlighter.add(c) for c in "a b"] == list("a b")


def test_code_comes_line_by_line():
    highlighter = Highlighter()
    highlighter.add("```python\n")
    assert highlighter.add("x = ") == ""
    assert ANSI.sub("", highlighter.add("1\ny")) == "x = 1\n"
    assert highlighter.finish() == "y"


@pytest.mark.parametrize("info", ["", "nosuchlanguage", "python title=x", "{.python}", "C++"])
def test_any_info_string_is_taken(info):
    text = f"```{info}\nint x = 1;\n```\nend"
    assert ANSI.sub("", coloured(text)) == text


def test_a_fence_within_a_longer_fence_is_code():
    text = "````python\n```\nx = 1\n````\nx = 1\n"
    lines = coloured(text).split("\n")
    assert "\x1b" in lines[2]
    assert lines[4] == "x = 1"


def test_a_long_block_keeps_its_text_and_its_colours():
    text = "```python\n" + "x = 'a'\n" * (2 * LINES_REREAD + 5) + "```\n"
    out = coloured(text)
    assert ANSI.sub("", out) == text
    assert out.count("\x1b[32m") >= 2 * LINES_REREAD

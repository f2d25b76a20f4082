"""Text in pieces coloured for a terminal, and the screen it is printed on."""

import io
import re
from unittest.mock import Mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge.chat.screen import LINES_REREAD, Highlighter, Screen, is_capable

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
     "'", "/*", "é", "\x0c", "````", "none\n", "#", "\\"]
)  # fmt: skip
SIZES = st.lists(st.integers(0, 9), max_size=60)


def in_pieces(text, sizes=()):
    highlighter, out, at = Highlighter(), "", 0
    for size in sizes:
        out += highlighter.add(text[at : at + size])
        at += size
    return out + highlighter.add(text[at:]) + highlighter.finish()


@given(st.lists(PIECES, max_size=40).map("".join), SIZES)
@example("~~~python\nx", [])
def test_colours_are_all_that_is_added(text, sizes):
    assert ANSI.sub("", in_pieces(text, sizes)) == text


def test_only_code_is_coloured():
    lines = in_pieces(CODE).split("\n")
    assert {place for place, line in enumerate(lines) if ANSI.search(line)} == COLOURED
    string = ANSI.search(lines[4])[0]
    assert lines[5].startswith(f'{string}    lines."""')  # inside the string begun above
    out = in_pieces("```python\n" + "x = 'a'\n" * 2 * LINES_REREAD)
    assert sum("\x1b" in line for line in out.split("\n")) == 2 * LINES_REREAD


def test_prose_is_shown_at_once_and_code_line_by_line():
    highlighter = Highlighter()
    for pieces in (["H", "i", " `x`", "\n```\n"], ["a", " b", "\n```\n"]):
        assert [highlighter.add(piece) for piece in pieces] == pieces
    highlighter.add("```python\n")
    assert highlighter.add("x = ") == ""
    assert ANSI.sub("", highlighter.add("1\ny")) == "x = 1\n"


@pytest.mark.parametrize(
    ("term", "no_color", "is_tty", "colour"),
    [("xterm", "", True, True), ("xterm", "1", True, False), ("dumb", "", True, False),
     ("", "", True, False), ("xterm", "", False, False)],
)  # fmt: skip
def test_colours_need_a_capable_terminal(term, no_color, is_tty, colour, monkeypatch):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_color)
    stream = Mock(isatty=lambda: is_tty)
    assert Screen(stream).colour == colour
    assert is_capable(stream) == (colour or bool(no_color))


def test_messages_begin_on_a_new_line_with_controls_escaped():
    stream = io.StringIO()
    screen = Screen(stream)
    screen.colour = True
    screen.write("half\x1b[0m")
    screen.note("a\x1bb")
    screen.say("c")
    assert stream.getvalue() == "half\x1b[0m\n\x1b[2ma\\x1bb\x1b[0m\nc\n"

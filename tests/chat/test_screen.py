"""What reaches a terminal."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.chat.screen import Sanitiser, Screen, is_capable


class Tty(io.StringIO):
    def isatty(self):
        return True


def harmless(text, sizes=()):
    sanitiser, out, at = Sanitiser(), "", 0
    for size in sizes:
        out += sanitiser.add(text[at : at + size])
        at += size
    return out + sanitiser.add(text[at:]) + sanitiser.finish()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n", "a\tb\n"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("50 %\r100 %\r\n", "50 %\\x0d100 %\n"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb", "a\\u202eb"),
        ("é 👩\u200d💻", "é 👩\u200d💻"),
        ("end\r", "end\\x0d"),
        ("\udc80", "\\udc80"),
    ],
)
def test_controls_are_shown_as_escapes(text, shown):
    assert harmless(text) == shown


@given(st.text(alphabet="\r\n\x1bab\x9b\u2066", max_size=30), st.lists(st.integers(0, 3)))
def test_pieces_make_no_difference(text, sizes):
    out = harmless(text, sizes)
    assert out == harmless(text)
    assert not set(out) & set("\r\x1b\x9b\u2066")


@pytest.mark.parametrize(
    ("environment", "colour", "capable"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, False, False),
        ({}, False, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(environment, colour, capable, monkeypatch):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (Screen(Tty()).colour, is_capable(Tty())) == (colour, capable)
    assert (Screen(io.StringIO()).colour, is_capable(io.StringIO())) == (False, False)


def test_lines_of_our_own_begin_on_a_new_line_and_are_harmless():
    stream = io.StringIO()
    screen = Screen(stream, colour=True)
    screen.write("half\x1b[0m")
    screen.note("a\x1bb")
    screen.say("c")
    assert stream.getvalue() == "half\x1b[0m\n\x1b[2ma\\x1bb\x1b[0m\nc\n"

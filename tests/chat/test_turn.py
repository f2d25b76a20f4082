"""One answer's figures, and the line under it."""

import io
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.chat.screen import Sanitiser, Screen, is_capable
from edge.chat.session import Turn, status_line, summarise
from edge.generate.stream import Stats, TextEvent, TokenClock
from edge.power.meter import Sample


def line(turn, dropped_turns=0, max_tokens=None):
    talk = SimpleNamespace(context_tokens=512, context_limit=16384, dropped_turns=dropped_turns)
    return status_line(turn, 1_910_000_000, talk, max_tokens)


@pytest.mark.parametrize(
    ("turn", "more", "end"),
    [
        (Turn(42, "stop token", 10, 0.214, 38.14), {},
         "42 tokens · 38.1 tok/s · first after 0.21 s · 1.91 GB · context 512/16384"),
        (Turn(1, "interrupted", None, None, None), {},
         "1 token · 1.91 GB · context 512/16384 · stopped by you"),
        (Turn(9, "length", 3, 0.1, 8.0), {"max_tokens": 9}, " · cut at max_tokens"),
        (Turn(9, "length", 3, 0.1, 8.0), {"max_tokens": 10}, " · cut at the end of the context"),
        (Turn(9, "stop token", 3, 0.1, 8.0), {"dropped_turns": 1}, " · 1 early turn left out"),
        (Turn(9, "stop token", 3, 0.1, 8.0, 18.24, 0.349), {}, " · 18.2 W · 0.35 J/token"),
        (Turn(1, "stop token", 3, 0.1, None, empty=True), {}, " · the answer is empty"),
    ],
)  # fmt: skip
def test_the_line_under_an_answer(turn, more, end):
    shown = line(turn, **more)
    assert shown.endswith(end) and shown.startswith(f"{turn.tokens} token")


@pytest.mark.parametrize("covered", [1, 0.5])
def test_energy_is_what_the_meter_saw_of_the_turn(covered):
    """Three tokens under a meter that sees 20 W for a share of the time from the begin on."""
    clock = TokenClock()
    clock.count(3)
    events = [TextEvent("x", (), None, None), TextEvent("", (), "length", Stats(5, 3, 0, 0, 1))]
    length_ns = clock.last_ns - clock.begin_ns
    end_ns = clock.begin_ns + max(1, int(length_ns * covered))
    joules = {"CPU": 20.0 * (end_ns - clock.begin_ns) / 1e9}
    turn = summarise(clock, events, [Sample(clock.begin_ns, end_ns, joules)])
    assert (turn.finish, turn.prompt_tokens, turn.empty) == ("length", 5, False)
    assert turn.power_w == pytest.approx(20.0)
    whole = pytest.approx(20.0 * length_ns / 1e9 / 3)
    assert turn.joules_per_token == (whole if covered == 1 else None)


def harmless(text, sizes=()):
    sanitiser, out, at = Sanitiser(), "", 0
    for length in sizes:
        out += sanitiser.add(text[at : at + length])
        at += length
    return out + sanitiser.add(text[at:]) + sanitiser.finish()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n", "a\tb\n"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("50 %\r100 %\r\n", "50 %\\r100 %\n"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb", "a\\u202eb"),
        ("é 👩\u200d💻", "é 👩\u200d💻"),
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
    ("term", "no_color", "is_tty", "colour"),
    [("xterm", "", True, True), ("xterm", "1", True, False), ("dumb", "", True, False),
     ("", "", True, False), ("xterm", "", False, False)],
)  # fmt: skip
def test_colours_are_for_terminals_that_want_them(term, no_color, is_tty, colour, monkeypatch):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_color)
    stream = Mock(isatty=lambda: is_tty)
    assert Screen(stream).colour == colour
    assert is_capable(stream) == (colour or bool(no_color))


def test_lines_of_our_own_begin_on_a_new_line_and_are_harmless():
    stream = io.StringIO()
    screen = Screen(stream)
    screen.colour = True
    screen.write("half\x1b[0m")
    screen.note("a\x1bb")
    screen.say("c")
    assert stream.getvalue() == "half\x1b[0m\n\x1b[2ma\\x1bb\x1b[0m\nc\n"

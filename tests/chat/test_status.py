"""The line under an answer."""

import pytest

from edge.chat.status import Turn, TurnClock, counted, size, status_line
from edge.generate.stream import Stats, TextEvent
from edge.power.meter import Sample

TURN = Turn(42, "stop token", 10, 0.214, 38.14)


def line(turn, **more):
    return status_line(turn, 1_910_000_000, 512, 16384, **more)


def test_an_ordinary_answer():
    assert line(TURN) == (
        "42 tokens · 38.1 tok/s · first after 0.21 s · 1.91 GB · context 512/16384"
    )


@pytest.mark.parametrize(
    ("turn", "more", "end"),
    [
        (Turn(9, "interrupted", None, 0.1, 8.0), {}, "stopped by you"),
        (Turn(9, "length", 3, 0.1, 8.0), {"max_tokens": 9}, "cut at max_tokens"),
        (Turn(9, "length", 3, 0.1, 8.0), {"max_tokens": 10}, "cut at the end of the context"),
        (Turn(9, "stop token", 3, 0.1, 8.0), {"dropped_turns": 1}, "1 early turn left out"),
        (Turn(9, "stop token", 3, 0.1, 8.0, 18.24, 0.349), {}, "18.2 W · 0.35 J/token"),
        (Turn(1, "stop token", 3, 0.1, None, empty=True), {}, "the answer is empty"),
    ],
)
def test_what_is_unusual_stands_at_the_end(turn, more, end):
    assert line(turn, **more).endswith(f" · {end}")


def test_what_is_not_known_is_left_out():
    assert line(Turn(0, "interrupted", None, None, None)) == (
        "0 tokens · 1.91 GB · context 512/16384 · stopped by you"
    )


def test_sizes():
    assert [size(n) for n in (0, 6_400_000, 1e9)] == ["0 MB", "6 MB", "1.00 GB"]


def turn_with(watts, covered):
    """Three tokens under a meter that sees a share of the time from the begin on."""
    clock = TurnClock()
    for token in range(3):
        clock.take(TextEvent("x", (token,), None, None))
    clock.take(TextEvent("", (), "length", Stats(5, 3, 0.1, 0.1, 1.0)))
    length_ns = clock._last_ns - clock.begin_ns
    end_ns = clock.begin_ns + max(1, int(length_ns * covered))
    joules = {"CPU": watts * (end_ns - clock.begin_ns) / 1e9}
    return clock.turn((Sample(clock.begin_ns, end_ns, joules),)), length_ns / 1e9


def test_energy_is_what_the_meter_saw_of_the_turn():
    turn, length_s = turn_with(20.0, covered=1)
    assert turn.power_w == pytest.approx(20.0)
    assert turn.joules_per_token == pytest.approx(20.0 * length_s / 3)


def test_half_a_measurement_gives_watts_and_no_joules():
    turn, _ = turn_with(20.0, covered=0.5)
    assert turn.power_w == pytest.approx(20.0)
    assert turn.joules_per_token is None


def test_without_a_meter_there_is_neither():
    clock = TurnClock()
    clock.take(TextEvent("x", (1,), None, None))
    assert (clock.turn().power_w, clock.turn().joules_per_token) == (None, None)
    assert clock.turn().finish == "interrupted"


def test_one_thing_is_singular():
    assert [counted(n, "message") for n in (0, 1, 2)] == ["0 messages", "1 message", "2 messages"]

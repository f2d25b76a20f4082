"""How many tokens are worth proposing, by what passes cost and what was accepted."""

import pytest

from edge.generate import speculate
from edge.generate.decode import generate_tokens
from edge.generate.lookup import PromptLookup
from edge.generate.speculate import FIRST_PAUSE_TOKENS, MOST_PROPOSED, Pace
from edge.model.stablelm import Model
from tests.support.drafters import Oracle, tiny
from tests.support.tiny import PLAIN


@pytest.fixture(scope="module")
def small():
    return tiny(PLAIN)


class Ticks:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self):
        return self.now


def test_pace_prefers_what_pays():
    pace = Pace()
    for _ in range(40):
        pace.saw_step(1.0)
        pace.saw_pass(4, 2.0)  # a quarter of a step for each proposal
        pace.saw_proposals(1, 0, 1)
        pace.saw_proposals(2, 1, 1)
        pace.saw_proposals(3, 20, 0)
    assert pace.pass_cost(4) == 2.0
    assert pace.length(1, 99) == 0
    assert 1 <= pace.length(2, 99) <= 2
    assert pace.length(3, 99) == MOST_PROPOSED
    assert pace.length(3, 2) == 2 and pace.length(3, 0) == 0


def test_pace_stops_where_passes_are_dear():
    pace = Pace()
    for _ in range(20):
        pace.saw_step(1.0)
        pace.saw_pass(1, 2.0)  # a pass of two takes as long as two steps
        pace.saw_proposals(3, 20, 0)
    assert pace.length(3, 99) == 0


def test_pace_tries_again_ever_more_rarely():
    """Only where proposals are right, so that nothing but the cost speaks against a pass."""
    pace, tried = Pace(), []
    for _ in range(20):
        pace.saw_step(1.0)
        pace.saw_pass(1, 2.0)  # a pass of two takes as long as two steps
        pace.saw_proposals(0, 20, 0)
        pace.saw_proposals(1, 0, 20)
    for step in range(400):
        pace.saw_step(1.0)
        assert pace.length(1, 9) == 0
        if pace.length(0, 9):
            tried.append(step + 1)
            pace.saw_pass(3, None)
    assert tried == [FIRST_PAUSE_TOKENS * n for n in (1, 3, 7)]


def test_laps_are_of_the_passes_not_of_the_caller(small):
    """By a clock that moves one second per pass and far more while the caller has it."""
    ticks = Ticks()
    call, pace = type(small.model).__call__, Pace(clock=ticks, fixed=3)
    seen = []
    pace.saw_step = lambda seconds: seen.append((0, seconds))
    pace.saw_pass = lambda count, seconds: seen.append((count, seconds))

    class Slow(type(small.model)):
        def __call__(self, ids, cache):
            ticks.now += ids.shape[1]
            return call(self, ids, cache)

    slow = Slow(small.config)
    slow.update_modules(dict(small.model.children()))
    timed = Model(small.config)
    timed.update_modules({"model": slow, "lm_head": small.lm_head})
    plain = list(generate_tokens(small, [1, 2], max_tokens=30))
    draft = Oracle(2, plain, 5, pace)
    for place, _ in enumerate(generate_tokens(timed, [1, 2], max_tokens=30, draft=draft)):
        ticks.now += 0.1 if place < 15 else 50
    assert {count for count, _ in seen} == {0, 3}
    assert {round(s) for count, s in seen if count == 3 and s is not None} == {4}
    assert None in [s for _, s in seen]


def test_a_drafter_that_does_not_pay_is_left_alone(small):
    """Passes that cost a step per position: after a few the loop is the plain one."""
    ticks, widths = Ticks(), []
    call = type(small.model).__call__

    class Slow(type(small.model)):
        def __call__(self, ids, cache):
            widths.append(ids.shape[1])
            ticks.now += ids.shape[1]
            return call(self, ids, cache)

    slow = Slow(small.config)
    slow.update_modules(dict(small.model.children()))
    timed = Model(small.config)
    timed.update_modules({"model": slow, "lm_head": small.lm_head})
    draft = PromptLookup(pace=Pace(clock=ticks))
    assert list(generate_tokens(timed, [1, 2] * 9, max_tokens=200, draft=draft)) == list(
        generate_tokens(small, [1, 2] * 9, max_tokens=200)
    )
    late = widths[-100:]
    assert draft.pace.drafted > 0
    assert sum(width - 1 for width in late) <= speculate.PROBE_LENGTH

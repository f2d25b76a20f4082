"""The index against a scan of the whole text, and how many proposals are worth making."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.generate.decode import generate_tokens
from edge.generate.lookup import (
    LONGEST_MATCH,
    MOST_PROPOSED,
    RETRY_TOKENS,
    DraftLength,
    NgramIndex,
    PromptLookup,
)
from edge.model.stablelm import Model
from tests.support.drafters import tiny
from tests.support.tiny import PLAIN

TEXTS = st.lists(st.integers(0, 3), max_size=60)


def scanned_source(ids, longest):
    """Where the latest earlier occurrence of the longest n-gram at the end is followed up."""
    for size in range(min(longest, len(ids)), 0, -1):
        for end in range(len(ids) - 1, size - 1, -1):
            if ids[end - size : end] == ids[-size:]:
                return end
    return None


def scanned_match(ids, source):
    length = 0
    while length < min(source, LONGEST_MATCH) and ids[source - 1 - length] == ids[-1 - length]:
        length += 1
    return length


def copied(ids, source, count):
    text = list(ids)
    for place in range(source, source + count):
        text.append(text[place])
    return text[len(ids) :]


@given(TEXTS, st.integers(1, 5), st.integers(1, 12))
def test_the_index_finds_what_a_scan_finds(ids, longest, count):
    index = NgramIndex(longest)
    for end, token in enumerate(ids, 1):
        index.extend([token])
        text = ids[:end]
        source = scanned_source(text, longest)
        if source is None:
            assert (index.match_length(), index.continuation(count)) == (0, [])
        else:
            assert index.match_length() == scanned_match(text, source)
            assert index.continuation(count) == copied(text, source, count)


@given(TEXTS, TEXTS, st.booleans())
def test_a_later_generation_finds_what_a_new_drafter_finds(first, second, continues):
    used, new = PromptLookup(), PromptLookup()
    used.begin(first)
    used.extend([9, 9])
    ids = [*first, 9, 9, *second] if continues else second
    used.begin(ids)
    new.begin(ids)
    assert (used.kind(), used.propose(4)) == (new.kind(), new.propose(4))


@pytest.mark.parametrize(("matched", "kind"), [(0, None), (1, 1), (2, 2), (3, 2), (9, 4), (40, 5)])
def test_longer_matches_are_of_other_kinds(matched, kind):
    lookup = PromptLookup()
    run = list(range(100, 100 + matched))
    lookup.begin([*run, 1, 2, *run])  # without a run the end is new
    assert lookup.kind() == kind


def test_ngrams_of_no_ids_are_refused():
    with pytest.raises(EdgeError, match="longest is 0; n-grams have 1 token or more"):
        PromptLookup(longest=0)


# --- how many proposals


def measured(pass_s, proposals, counts, rounds=20):
    """A length that saw steps of a second, passes of so many, and hits and misses by kind."""
    length = DraftLength()
    for _ in range(rounds):
        length.saw_step(1.0)
        length.saw_pass(proposals, pass_s)
        for kind, (hits, misses) in counts.items():
            length.saw_proposals(kind, hits, misses)
    return length


def test_the_length_that_pays_is_chosen():
    length = measured(2.0, 4, {1: (0, 1), 2: (1, 1), 3: (20, 0)}, rounds=40)
    assert length.pass_cost(4) == 2.0  # a quarter of a step for each proposal
    assert length.best(1, 99) == 0
    assert 1 <= length.best(2, 99) <= 2
    assert length.best(3, 99) == MOST_PROPOSED
    assert length.best(3, 2) == 2 and length.best(3, 0) == 0


def test_expensive_passes_are_given_up_and_tried_again_later():
    length = measured(2.0, 1, {0: (20, 0), 1: (0, 20)})  # two positions take as long as two steps
    for step in range(1, 2 * RETRY_TOKENS):
        length.saw_step(1.0)
        assert (length.best(0, 9) > 0) == (step >= RETRY_TOKENS), step
        assert length.best(1, 9) == 0


class Slow:
    """The model by a clock that moves one second per position that is computed."""

    def __init__(self, model, monkeypatch):
        self.now_s, self.widths = 0.0, []
        call = type(model.model).__call__

        def slow(inner, ids, cache):
            self.widths.append(ids.shape[1])
            self.now_s += ids.shape[1]
            return call(inner, ids, cache)

        self.model = Model(model.config)
        self.model.update_modules(dict(model.children()))
        monkeypatch.setattr(type(model.model), "__call__", slow)

    def clock(self):
        return self.now_s


def test_a_drafter_that_does_not_pay_is_left_alone(monkeypatch):
    """Passes that cost a step per position: after a few the loop is the plain one."""
    small, ids = tiny(PLAIN), [1, 2] * 9
    plain = list(generate_tokens(small, ids, max_tokens=200))
    slow = Slow(small, monkeypatch)
    draft = PromptLookup(length=DraftLength(clock=slow.clock))
    assert list(generate_tokens(slow.model, ids, max_tokens=200, draft=draft)) == plain
    assert draft.drafted > 0
    assert set(itertools.islice(reversed(slow.widths), 100)) == {1}

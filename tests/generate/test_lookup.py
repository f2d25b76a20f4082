"""The index against a scan of the whole text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.generate.lookup import LONGEST_MATCH, NgramIndex, PromptLookup

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


@given(TEXTS, TEXTS)
def test_one_call_or_many_is_the_same(one, two):
    at_once, apart = NgramIndex(), NgramIndex()
    at_once.extend(one + two)
    apart.extend(one)
    apart.extend(two)
    assert at_once.continuation(5) == apart.continuation(5)


def test_a_short_period_is_repeated():
    index = NgramIndex()
    index.extend([7, 1, 2, 3, 1, 2, 3])
    assert index.continuation(7) == [1, 2, 3, 1, 2, 3, 1]


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
    lookup.begin([*run, 1, 2, *run])
    # Without a run the end is new: the text is 1, 2.
    assert lookup.kind() == kind


def test_ngrams_have_ids():
    with pytest.raises(EdgeError, match="longest is 0; n-grams have 1 token or more"):
        PromptLookup(longest=0)

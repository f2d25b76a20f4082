"""Scores of middles and their statistics, against published and independent values."""

import math

import pytest

from edge.quality.fim.score import Score, agresti_min, compare, mcnemar, score, summarise, wilson

YES, NO = Score(True, True, 1.0), Score(False, False, 0.25)


@pytest.mark.parametrize(
    ("expected", "got", "result"),
    [
        ("items", "items", (True, True, 1.0)),
        ("items", " items\n", (False, True, 1 - 2 / 7)),
        ("kitten", "sitting", (False, False, 1 - 3 / 7)),
        ("é😀", "e😀", (False, False, 0.5)),
        ("", "", (True, True, 1.0)),
    ],
)
def test_middles_are_compared_by_characters(expected, got, result):
    found = score(expected, got)
    assert (found.exact, found.stripped, pytest.approx(found.similarity)) == result


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)],
)
def test_wilson(successes, count, low, high):
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(count - successes, count)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_mcnemar_is_the_binomial_test():
    assert [mcnemar(*split) for split in ((0, 0), (3, 3), (0, 6))] == [1, 1, 2 / 64]
    assert mcnemar(2, 10) == pytest.approx(0.0385742)  # R: binom.test(2, 12)
    assert mcnemar(2000, 3000) < 1e-40


def test_paired_interval_is_walds_with_half_a_pair_more():
    # (2.5 - 6.5) / 62 and 1.959964 sqrt(2.5 + 6.5 - 16 / 62) / 62
    assert agresti_min(2, 6, 60) == pytest.approx((-0.157984, 0.028951), abs=1e-6)
    assert agresti_min(5, 0, 5)[1] == 1


def test_summary_of_several_middles():
    found = summarise([YES, NO, NO, Score(False, True, 0.5)])
    shares = ("exact_match", "exact_match_stripped", "edit_similarity")
    assert [found[name] for name in shares] == [0.25, 0.5, 0.5]
    assert found["exact_match_ci95"] == wilson(1, 4)
    low, high = found["edit_similarity_ci95"]
    assert low == 0  # Student's goes below
    # t(3, 97.5 %) is 3.182446, the standard deviation sqrt(1/8)
    assert high == pytest.approx(min(1, 0.5 + 3.182446 * math.sqrt(1 / 8) / 2))
    assert summarise([YES])["edit_similarity_ci95"] is None


def test_change_from_the_reference_is_paired():
    change = compare([YES, YES, NO, NO], [YES, NO, YES, NO])
    figures = ("gained", "lost", "exact_match", "exact_match_p", "edit_similarity")
    assert [change[name] for name in figures] == [1, 1, 0, 1, 0]
    assert compare([YES, NO], [YES, NO])["edit_similarity_ci95"] == (0, 0)
    assert compare([YES], [NO])["exact_match"] == 1

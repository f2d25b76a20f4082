"""Student's t and Welch's test against scipy 1.16; pairs, outliers, drift and percentiles."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.stats import (
    detectable,
    drift,
    interval,
    outliers,
    paired,
    percentiles,
    t_quantile,
    t_tail,
    welch,
)

FINITE = st.floats(0.001, 1e6)


@pytest.mark.parametrize(
    ("function", "x", "degrees", "expected"),
    [
        (t_tail, 0, 1, 0.5),
        (t_tail, 8, 1, 0.039583424160565546),
        (t_tail, 0.3, 3.7, 0.3901337435657311),
        (t_tail, 2.5, 9, 0.016930913841492867),
        (t_tail, 8, 200, 4.939600454665298e-14),
        (t_quantile, 0.9, 1, 3.0776835371752544),
        (t_quantile, 0.995, 4, 4.604094871349992),
        (t_quantile, 0.975, 29.5, 2.043724966772122),
    ],
)
def test_students_t_matches_scipy(function, x, degrees, expected):
    assert function(x, degrees) == pytest.approx(expected, rel=1e-9)


def test_welch_matches_scipy():
    found = welch([10.1, 10.4, 9.9, 10.2, 10.3], [10.9, 11.6, 10.2, 11.9])
    assert found.t == pytest.approx(-2.4915515924871188)
    assert found.degrees == pytest.approx(3.3093416448144732)
    assert found.p == pytest.approx(0.08047666331505675)
    assert found.error * found.t == pytest.approx(10.18 - 11.15)
    assert welch([1.0], [2.0, 3.0]) is None
    assert welch([2.0, 2.0], [2.0, 2.0]).p == 1
    assert welch([2.0, 2.0], [3.0, 3.0]).p == 0


# Published critical values of Wilcoxon's signed-rank test at 5 and 1 %, two-sided.
@pytest.mark.parametrize(
    ("pairs", "confidence", "outside"),
    [(6, 0.95, 0), (7, 0.95, 2), (10, 0.95, 8), (20, 0.95, 52), (30, 0.95, 137), (10, 0.99, 3)],
)
def test_an_interval_of_pairs_leaves_out_the_published_number_of_means(pairs, confidence, outside):
    values = [2.0**i for i in range(pairs)]
    means = sorted((a + b) / 2 for i, a in enumerate(values) for b in values[i:])
    found = paired(values, confidence)
    assert found.interval == (means[outside], means[-1 - outside])
    assert found.centre == statistics.median(means)


def test_few_pairs_have_students_interval_and_one_pair_has_none():
    few = [0.1, 0.2, 0.15, 0.12, 0.11]
    assert paired(few).interval == interval(few)
    assert paired([*few, 0.1], 0.97).interval == interval([*few, 0.1], 0.97)  # 6 pairs have 96.9 %
    assert paired(few).centre == statistics.fmean(few)
    assert paired([0.1]).interval is None


def test_a_disturbed_pair_in_ten_hides_no_difference():
    rng = random.Random(3)
    found = 0
    for _ in range(200):
        values = [rng.gauss(0.03, 0.01) for _ in range(20)]
        for place, moved in zip(rng.sample(range(20), 2), (-0.5, 0.5), strict=True):
            values[place] += moved
        low, _ = paired(values).interval
        found += low > 0
        assert interval(values)[0] < 0  # Student's misses it
    assert found > 190


def test_a_detectable_difference_is_found_as_often_as_stated():
    """1000 experiments whose true shift is what the interval's half width can show."""
    rng, found, n, sd = random.Random(4), 0, 12, 0.02
    shift = detectable(t_quantile(0.975, n - 1) * sd / math.sqrt(n), n - 1)
    for _ in range(1000):
        low, _ = interval([rng.gauss(shift, sd) for _ in range(n)])
        found += low > 0
    assert 930 <= found <= 975


@given(st.lists(FINITE, min_size=2, max_size=12), st.lists(FINITE, min_size=2, max_size=12))
def test_welch_is_symmetric_and_an_interval_contains_the_mean(a, b):
    one, two = welch(a, b), welch(b, a)
    assert 0 <= one.p == two.p <= 1 and one.t == -two.t
    low, high = interval(a)
    assert low <= statistics.fmean(a) * (1 + 1e-12)
    assert high >= statistics.fmean(a) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("values", "indices"),
    [
        ([10.0, 10.1, 9.9, 10.2, 3.0, 10.05], [4]),
        ([10.0, 10.0, 10.0, 10.0, 3.0], []),  # no spread to compare with
        ([1.0, 100.0], []),  # too few
        # The median is 10 and the median absolute deviation 0.1: ten scaled deviations are 1.4826.
        ([10.0, 10.0, 10.1, 9.9, 9.9, 11.46], []),
        ([10.0, 10.0, 10.1, 9.9, 9.9, 11.50], [5]),
    ],
)
def test_outliers(values, indices):
    assert outliers(values) == indices


def test_drift_is_the_slope_of_a_trend_and_zero_for_noise():
    cooling = [30, 29.5, 29.7, 29, 28.8, 28.9, 28.1, 28, 27.5, 27.6, 27, 26.9]
    # scipy.stats.theilslopes: -0.28376623
    assert drift(cooling) == pytest.approx(-0.28376623376623383 * 11 / statistics.median(cooling))
    assert drift(cooling[::-1]) == pytest.approx(-drift(cooling))
    assert drift([30, 29, 30.5, 29.2, 30.1, 29.9, 29.4, 30.2]) == 0
    assert drift([3, 2, 1]) == 0


def test_percentiles_interpolate():
    assert percentiles([5, 1, 9, 2.5, 7, 7]) == pytest.approx({"p50": 6, "p90": 8, "p99": 8.9})

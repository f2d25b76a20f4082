"""Centre, spread and shape of repeated measurements; Student's t against scipy 1.16's values."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.bench.statistics import drift, outliers, percentiles, summarise
from edge.stats import interval, t_quantile, t_tail, welch

FINITE = st.floats(0.001, 1e6)


def test_nothing_measured_is_no_quantity():
    assert summarise([]) is None
    assert summarise([None, None]) is None


def test_one_value_has_no_spread():
    quantity = summarise([3.0, None])
    assert quantity is not None
    assert (quantity.median, quantity.mean, quantity.sd, quantity.n) == (3, 3, None, 1)
    assert quantity.ci95 is None and quantity.relative_sd == 0


def test_the_interval_takes_each_process_as_one_observation():
    values = [10.0, 10.2, 11.0, 11.2, 12.0, 12.2]
    apart, grouped = summarise(values), summarise(values, [0, 0, 1, 1, 2, 2])
    assert apart is not None and grouped is not None
    assert (apart.mean, apart.sd) == (grouped.mean, grouped.sd)
    assert grouped.ci95 == interval([10.1, 11.1, 12.1])
    # Three processes instead of six values: a wider interval.
    assert apart.ci95 is not None and grouped.ci95 is not None
    assert grouped.ci95[1] - grouped.ci95[0] > apart.ci95[1] - apart.ci95[0]


@pytest.mark.parametrize(
    ("t", "degrees", "share"),
    [
        (0, 1, 0.5),
        (1, 1, 0.25),
        (8, 1, 0.039583424160565546),
        (2.5, 2, 0.06480586011075541),
        (0.3, 3.7, 0.3901337435657311),
        (8, 3.7, 0.0009125454813373667),
        (2.5, 9, 0.016930913841492867),
        (8, 30.5, 2.779077200918083e-09),
        (1, 200, 0.15925942395487336),
        (8, 200, 4.939600454665298e-14),
    ],
)
def test_the_tail_is_scipys(t, degrees, share):
    assert t_tail(t, degrees) == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize(
    ("share", "degrees", "t"),
    [
        (0.9, 1, 3.0776835371752544),
        (0.975, 1, 12.706204736174694),
        (0.975, 2, 4.302652729749462),
        (0.995, 4, 4.604094871349992),
        (0.975, 29.5, 2.043724966772122),
    ],
)
def test_the_quantile_is_scipys(share, degrees, t):
    assert t_quantile(share, degrees) == pytest.approx(t, rel=1e-9)


def test_welch_is_scipys():
    found = welch([10.1, 10.4, 9.9, 10.2, 10.3], [10.9, 11.6, 10.2, 11.9])
    assert found is not None
    assert found.t == pytest.approx(-2.4915515924871188)
    assert found.degrees == pytest.approx(3.3093416448144732)
    assert found.p == pytest.approx(0.08047666331505675)


def test_welch_without_spread_or_values():
    assert welch([1.0], [2.0, 3.0]) is None
    same, other = welch([2.0, 2.0], [2.0, 2.0]), welch([2.0, 2.0], [3.0, 3.0])
    assert same is not None and same.p == 1
    assert other is not None and other.p == 0


@given(st.lists(FINITE, min_size=2, max_size=12), st.lists(FINITE, min_size=2, max_size=12))
def test_welch_is_a_probability_and_symmetric(a, b):
    one, two = welch(a, b), welch(b, a)
    assert one is not None and two is not None
    assert 0 <= one.p <= 1
    assert one.p == two.p and one.t == -two.t


@given(st.lists(FINITE, min_size=2, max_size=20))
def test_the_mean_is_inside_its_interval(values):
    low, high = interval(values)
    assert low <= statistics.fmean(values) * (1 + 1e-12)
    assert high >= statistics.fmean(values) * (1 - 1e-12)


def test_an_outlier_is_found_and_noise_is_not():
    assert outliers([10.0, 10.1, 9.9, 10.2, 3.0, 10.05]) == [4]
    assert outliers([10.0, 10.1, 9.9, 10.2, 9.8, 10.05]) == []
    assert outliers([10.0, 10.0, 10.0, 10.0, 3.0]) == []  # no spread to compare with
    assert outliers([1.0, 100.0]) == []


@pytest.mark.parametrize(("scaled_mads", "places"), [(8, []), (9.9, []), (10.1, [5]), (12, [5])])
def test_an_outlier_is_ten_scaled_deviations_away(scaled_mads, places):
    """Of these six the median is 10 and the median absolute deviation 0.1."""
    values = [10.0, 10.0, 10.1, 9.9, 9.9, 10.0 + 0.1 * 1.4826 * scaled_mads]
    assert outliers(values) == places


def test_drift_is_found_against_noise():
    cooling = [30, 29.5, 29.7, 29, 28.8, 28.9, 28.1, 28, 27.5, 27.6, 27, 26.9]
    # scipy.stats.theilslopes: -0.28376623
    assert drift(cooling) == pytest.approx(-0.28376623376623383 * 11 / statistics.median(cooling))
    assert drift(cooling[::-1]) == pytest.approx(-drift(cooling))
    assert drift([30, 29, 30.5, 29.2, 30.1, 29.9, 29.4, 30.2]) == 0
    assert drift([3, 2, 1]) == 0


def test_percentiles_are_numpys():
    values = [5, 1, 9, 2.5, 7, 7]
    assert percentiles(values, [0, 0.5, 0.9, 0.99, 1]) == pytest.approx([1, 6, 8, 8.9, 9])
    with pytest.raises(ValueError, match="no values"):
        percentiles([], [0.5])


@given(st.lists(FINITE, min_size=1), st.floats(0, 1))
def test_a_percentile_is_between_the_extremes(values, share):
    [found] = percentiles(values, [share])
    assert min(values) <= found <= max(values) or math.isclose(found, max(values))

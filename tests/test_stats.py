"""Student's t against scipy 1.16's values; outliers, drift and percentiles."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.stats import drift, interval, outliers, percentiles, t_quantile, t_tail, welch

FINITE = st.floats(0.001, 1e6)


@pytest.mark.parametrize(
    ("t", "degrees", "share"),
    [
        (0, 1, 0.5),
        (8, 1, 0.039583424160565546),
        (2.5, 2, 0.06480586011075541),
        (0.3, 3.7, 0.3901337435657311),
        (2.5, 9, 0.016930913841492867),
        (8, 30.5, 2.779077200918083e-09),
        (1, 200, 0.15925942395487336),
        (8, 200, 4.939600454665298e-14),
    ],
)
def test_tail_is_scipys(t, degrees, share):
    assert t_tail(t, degrees) == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize(
    ("share", "degrees", "t"),
    [
        (0.9, 1, 3.0776835371752544),
        (0.975, 2, 4.302652729749462),
        (0.995, 4, 4.604094871349992),
        (0.975, 29.5, 2.043724966772122),
    ],
)
def test_quantile_is_scipys(share, degrees, t):
    assert t_quantile(share, degrees) == pytest.approx(t, rel=1e-9)


def test_welch_is_scipys():
    found = welch([10.1, 10.4, 9.9, 10.2, 10.3], [10.9, 11.6, 10.2, 11.9])
    assert found.t == pytest.approx(-2.4915515924871188)
    assert found.degrees == pytest.approx(3.3093416448144732)
    assert found.p == pytest.approx(0.08047666331505675)
    assert found.error * found.t == pytest.approx(10.18 - 11.15)
    assert welch([1.0], [2.0, 3.0]) is None
    assert welch([2.0, 2.0], [2.0, 2.0]).p == 1
    assert welch([2.0, 2.0], [3.0, 3.0]).p == 0


@given(st.lists(FINITE, min_size=2, max_size=12), st.lists(FINITE, min_size=2, max_size=12))
def test_welch_is_symmetric_and_a_mean_inside_its_interval(a, b):
    one, two = welch(a, b), welch(b, a)
    assert 0 <= one.p <= 1
    assert one.p == two.p and one.t == -two.t
    low, high = interval(a)
    assert low <= statistics.fmean(a) * (1 + 1e-12)
    assert high >= statistics.fmean(a) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ([10.0, 10.1, 9.9, 10.2, 3.0, 10.05], [4]),
        ([10.0, 10.1, 9.9, 10.2, 9.8, 10.05], []),
        ([10.0, 10.0, 10.0, 10.0, 3.0], []),  # no spread to compare with
        ([1.0, 100.0], []),
        # The median is 10 and the median absolute deviation 0.1: ten scaled deviations are 1.4826.
        ([10.0, 10.0, 10.1, 9.9, 9.9, 11.46], []),
        ([10.0, 10.0, 10.1, 9.9, 9.9, 11.50], [5]),
    ],
)
def test_outliers(values, places):
    assert outliers(values) == places


def test_drift_is_found_against_noise():
    cooling = [30, 29.5, 29.7, 29, 28.8, 28.9, 28.1, 28, 27.5, 27.6, 27, 26.9]
    # scipy.stats.theilslopes: -0.28376623
    assert drift(cooling) == pytest.approx(-0.28376623376623383 * 11 / statistics.median(cooling))
    assert drift(cooling[::-1]) == pytest.approx(-drift(cooling))
    assert drift([30, 29, 30.5, 29.2, 30.1, 29.9, 29.4, 30.2]) == 0
    assert drift([3, 2, 1]) == 0


def test_percentiles_interpolate():
    assert percentiles([5, 1, 9, 2.5, 7, 7]) == pytest.approx({"p50": 6, "p90": 8, "p99": 8.9})

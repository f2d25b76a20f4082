import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.power.choose import choose_meter
from edge.power.meter import Sample, integrate


def test_whole_samples_add_up_per_rail():
    samples = [Sample(0, 10, {"CPU": 1.0, "GPU": 2.0}), Sample(10, 20, {"CPU": 3.0, "GPU": 4.0})]
    energy = integrate(samples, 0, 20)
    assert energy.joules == {"CPU": 4.0, "GPU": 6.0}
    assert (energy.total_j, energy.coverage) == (10.0, 1.0)


def test_edges_count_in_proportion():
    energy = integrate([Sample(0, 10, {"CPU": 1.0}), Sample(10, 20, {"CPU": 3.0})], 5, 15)
    assert energy.joules == {"CPU": pytest.approx(0.5 + 1.5)}
    assert energy.coverage == 1.0


def test_a_gap_lowers_the_coverage_and_invents_nothing():
    energy = integrate([Sample(0, 5, {"CPU": 1.0})], 0, 20)
    assert (energy.total_j, energy.coverage) == (1.0, 0.25)


def test_no_samples_is_no_coverage():
    assert integrate([], 0, 10).coverage == 0


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match="end after"):
        integrate([], 10, 10)


@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1e3)), min_size=1, max_size=20),
    st.integers(0, 10**9),
    st.integers(1, 10**9),
)
def test_splitting_a_window_loses_no_energy(pieces, begin, length):
    samples, now = [], 0
    for duration, joules in pieces:
        samples.append(Sample(now, now + duration, {"CPU": joules}))
        now += duration
    end, middle = begin + 2 * length, begin + length
    whole = integrate(samples, begin, end).total_j
    halves = integrate(samples, begin, middle).total_j + integrate(samples, middle, end).total_j
    assert halves == pytest.approx(whole, rel=1e-9, abs=1e-9)
    assert whole <= sum(j for _, j in pieces) * (1 + 1e-9)


@pytest.mark.parametrize("source", ["auto", "none"])
def test_without_a_meter_there_is_a_reason(source):
    meter = choose_meter(source)
    meter.start()
    assert list(meter.stop()) == []
    assert "power was not measured" in meter.unavailable

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.power import SOURCES, choose
from edge.power.choose import choose_meter
from edge.power.meter import Sample, integrate


@pytest.mark.parametrize(
    ("begin", "end", "joules", "coverage"),
    [
        (0, 20, {"CPU": 4.0, "GPU": 6.0}, 1.0),
        (5, 15, {"CPU": 2.0, "GPU": 3.0}, 1.0),
        (0, 80, {"CPU": 4.0, "GPU": 6.0}, 0.25),  # a gap adds nothing
        (20, 30, {}, 0.0),
    ],
)
def test_samples_count_by_their_share_in_the_window(begin, end, joules, coverage):
    samples = [Sample(0, 10, {"CPU": 1.0, "GPU": 2.0}), Sample(10, 20, {"CPU": 3.0, "GPU": 4.0})]
    energy = integrate(samples, begin, end)
    assert (energy.joules, energy.coverage) == (pytest.approx(joules), coverage)
    assert energy.total_j == pytest.approx(sum(joules.values()))
    with pytest.raises(ValueError, match="end after"):
        integrate(samples, end, begin)


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


def constant(*watts):
    """One-second samples of so many watts each."""
    return [Sample(n * 10**9, (n + 1) * 10**9, {"CPU": w}) for n, w in enumerate(watts)]


def test_the_edge_error_is_the_change_of_power_around_a_straddling_sample():
    # 1 W before, 9 W after: each straddling second may hold 8 J more or less.
    energy = integrate(constant(1, 5, 9, 9, 5, 1), 15 * 10**8, 45 * 10**8)
    assert energy.edge_error_j == pytest.approx(8.0 + 8.0)
    assert integrate(constant(5, 5, 5, 5), 15 * 10**8, 25 * 10**8).edge_error_j == 0
    assert integrate(constant(1, 9, 9, 1), 10**9, 3 * 10**9).edge_error_j == 0  # between samples


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.integers(7, 16), st.data())
def test_the_edge_error_bounds_a_step_of_power_at_the_edges(out_w, in_w, count, data):
    step = 10**9
    begin = data.draw(st.integers(step, (count - 3) * step))
    end = data.draw(st.integers(begin + step, (count - 1) * step))

    def joules(left, right):
        inside = max(0, min(right, end) - max(left, begin))
        return (inside * in_w + (right - left - inside) * out_w) / 1e9

    samples = [
        Sample(n * step, (n + 1) * step, {"CPU": joules(n * step, (n + 1) * step)})
        for n in range(count)
    ]
    energy = integrate(samples, begin, end)
    true_j = (end - begin) / 1e9 * in_w
    assert abs(energy.total_j - true_j) <= energy.edge_error_j + 1e-6


def test_the_worst_pressure_counts_and_an_unknown_one_is_not_nominal():
    def worst(*levels):
        samples = [Sample(n, n + 1, {}, level) for n, level in enumerate(levels)]
        return integrate(samples, 0, len(levels)).thermal_worst

    assert worst("nominal", "heavy", "moderate") == "heavy"
    assert worst("nominal", "lukewarm", "nominal") == "lukewarm"
    assert worst(None, "nominal") == "nominal"
    assert worst(None) is None


def test_rails_beside_are_never_added():
    energy = integrate([Sample(0, 10, {"CPU": 2.0}, beside={"DRAM": 4.0})], 0, 5)
    assert (energy.total_j, energy.beside, energy.records) == (1.0, {"DRAM": 2.0}, 1)


# --- choice of the meter

NO_DRIVER = {"nvml": "no driver"}
NEITHER = {**NO_DRIVER, "rapl": "no permission"}


@pytest.mark.parametrize(
    ("platform", "reasons", "processors", "source", "words"),
    [
        ("darwin", {}, ["CPU", "GPU"], "powermetrics", ""),
        ("darwin", {"powermetrics": "no root"}, [], "ioreport", ""),
        ("linux", {}, [], "nvml", ""),
        ("linux", NO_DRIVER, [], "rapl", ""),
        ("linux", {}, ["CPU"], "rapl", ""),
        ("linux", {}, ["CPU", "GPU"], "none", "nvml: it does not cover the CPU"),
        ("linux", NEITHER, [], "none", "nvml: no driver; rapl: no permission"),
        ("plan9", {}, [], "none", "plan9"),
    ],
)
def test_auto_is_the_best_that_works_and_covers_what_computes(
    monkeypatch, platform, reasons, processors, source, words
):
    monkeypatch.setattr(sys, "platform", platform)
    for name in choose.METERS:
        found = SimpleNamespace(source=name, unavailable=reasons.get(name))
        monkeypatch.setitem(choose.METERS, name, lambda found=found: found)
    meter = choose_meter("auto", processors)
    assert meter.source == source and words in (meter.unavailable or "")


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_can_be_built_on_every_machine(source):
    meter = choose_meter(source)
    assert ("auto", *choose.METERS, "none") == SOURCES
    assert (type(meter.source), type(meter.boundary), list(meter.flags)) == (str, str, [])
    assert meter.unavailable is None or len(meter.unavailable) > 20
    if source == "none":
        meter.start()
        assert list(meter.stop()) == []

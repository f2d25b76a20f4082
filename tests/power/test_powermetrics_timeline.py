from dataclasses import replace
from itertools import pairwise

import pytest

from edge.power.meter import integrate
from edge.power.powermetrics_record import Record
from edge.power.powermetrics_timeline import build_timeline

MS = 10**6


def records(*cpu_j, elapsed_ns=500 * MS, gpu_j=1.0):
    return [Record(elapsed_ns, {"CPU": j, "GPU": gpu_j, "ANE": 0.0}) for j in cpu_j]


def arrivals(count, lateness=(), begin=7000 * MS):
    late = dict(lateness)
    return [begin + (n + 1) * 500 * MS + (5 + late.get(n, 0)) * MS for n in range(count)]


def test_a_late_arrival_moves_nothing():
    samples = build_timeline(records(*[1] * 6), arrivals(6, {0: 90, 2: 300}.items()), 100 * MS)
    assert samples.flags == ()
    assert [s.end_ns for s in samples.samples] == arrivals(6)
    assert all(s.end_ns - s.begin_ns == 500 * MS for s in samples.samples)


def test_lost_time_moves_what_follows():
    late = {n: 1500 for n in range(3, 6)}
    line = build_timeline(records(*[1] * 6), arrivals(6, late.items()), 100 * MS)
    assert line.samples[3].begin_ns - line.samples[2].end_ns == 1500 * MS
    assert line.flags == ("1.5 s are missing between records",)


def test_where_a_record_was_rejected_is_a_hole():
    """Shorter than what stamps may vary by, but known."""
    kept = records(*[1] * 6, elapsed_ns=50 * MS)
    kept[3] = replace(kept[3], follows_loss=True)
    ends = [50 * MS * (n + (n >= 3)) for n in range(6)]
    line = build_timeline(kept, ends, 100 * MS, after_loss_ns=0)
    assert line.samples[3].begin_ns - line.samples[2].end_ns == 50 * MS
    assert integrate(line.samples, line.samples[0].begin_ns, ends[-1]).coverage == 6 / 7
    late = build_timeline(kept, ends, 100 * MS)  # without after_loss_ns it may be a late arrival
    assert late.samples[3].begin_ns == late.samples[2].end_ns


def test_a_clock_that_slept_is_flagged():
    late = {n: -1500 for n in range(3, 6)}
    line = build_timeline(records(*[1] * 6), arrivals(6, late.items()), 100 * MS)
    assert "claim 1.5 s more" in line.flags[0]
    assert all(a.end_ns <= b.begin_ns for a, b in pairwise(line.samples))


def test_a_stalled_counter_is_no_zero():
    line = build_timeline(records(3, *[0] * 11), None, 0)
    assert "CPU counter stalled" in line.flags[0]
    assert line.boundary == "GPU of the SoC only: not a total"
    energy = integrate(line.samples, 0, 6000 * MS)
    assert (energy.joules, energy.is_total) == ({"GPU": 12.0}, False)
    assert energy.beside["CPU"] == 3.0


def test_five_seconds_of_zeros_are_not_yet_a_stall():
    line = build_timeline(records(*[0] * 10, 60), None, 0)
    assert line.flags == ()
    energy = integrate(line.samples, 0, 5500 * MS)
    assert (energy.joules["CPU"], energy.is_total) == (60.0, True)


def test_a_batch_is_spread_over_the_time_it_is_of():
    line = build_timeline(records(0, 0, 0, 8, 0, 0, 0, 8), None, 0)
    assert [(s.begin_ns, s.joules["CPU"]) for s in line.samples] == [(0, 8.0), (2000 * MS, 8.0)]
    half = integrate(line.samples, 0, 1000 * MS)
    assert half.joules["CPU"] == pytest.approx(4.0)
    assert half.edge_error_j >= 4.0  # where in the batch it was used, nobody knows


def test_zeros_at_the_end_are_told():
    line = build_timeline(records(1, 1, 0, 0), None, 0)
    assert "did not move in the last 1.0 s" in line.flags[0]


def test_complaints_are_counted():
    line = build_timeline(records(1), None, 0, ["broken XML", "broken XML", "no cpu_energy"])
    assert line.flags == (
        "2 records were not counted: broken XML",
        "1 record was not counted: no cpu_energy",
    )


def test_nothing_at_all():
    assert list(build_timeline([], [], 0).samples) == []

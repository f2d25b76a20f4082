"""What a profile keeps of a meter's samples."""

import pytest

from edge.bench.power_series import KEPT_SAMPLES, power_series
from edge.power.meter import Sample

SECOND = 10**9


def samples(count, joules=0.5, **fields):
    return [
        Sample(i * SECOND, (i + 1) * SECOND, {"CPU": joules, "GPU": i * 1.0}, **fields)
        for i in range(count)
    ]


def test_nothing_was_measured():
    assert power_series([]) is None
    assert power_series([Sample(5, 5, {"CPU": 1.0})]) is None


def test_samples_become_whole_milliwatts_on_the_same_clock():
    kept = power_series(samples(3))
    assert kept == {
        "begin_ns": [0, SECOND, 2 * SECOND],
        "end_ns": [SECOND, 2 * SECOND, 3 * SECOND],
        "milliwatts": {"CPU": [500, 500, 500], "GPU": [0, 1000, 2000]},
        "thermal": [],
    }


def test_many_samples_are_merged_and_their_joules_kept():
    many = samples(2 * KEPT_SAMPLES + 100)
    kept = power_series(many)
    assert len(kept["begin_ns"]) <= KEPT_SAMPLES
    seconds = [
        (end - begin) / 1e9 for begin, end in zip(kept["begin_ns"], kept["end_ns"], strict=True)
    ]
    for rail in ("CPU", "GPU"):
        joules = sum(s * mw / 1000 for s, mw in zip(seconds, kept["milliwatts"][rail], strict=True))
        assert joules == pytest.approx(sum(s.joules[rail] for s in many), rel=1e-6)


def test_thermal_levels_are_kept_where_they_change():
    levels = ["nominal", "nominal", "heavy", None, "nominal"]
    many = [
        Sample(i * SECOND, (i + 1) * SECOND, {"CPU": 1.0}, thermal=level)
        for i, level in enumerate(levels)
    ]
    assert power_series(many)["thermal"] == [
        {"begin_ns": 0, "level": "nominal"},
        {"begin_ns": 2 * SECOND, "level": "heavy"},
        {"begin_ns": 4 * SECOND, "level": "nominal"},
    ]


def test_a_rail_that_comes_and_goes_is_nothing_meanwhile():
    some = [Sample(0, SECOND, {"CPU": 1.0}), Sample(SECOND, 2 * SECOND, {"GPU": 2.0})]
    assert power_series(some)["milliwatts"] == {"CPU": [1000, 0], "GPU": [0, 2000]}

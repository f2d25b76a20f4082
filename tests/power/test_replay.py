import os
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.power.meter import integrate
from edge.power.replay import read_log
from tests.support.fake_powermetrics import record, stream

START = datetime(2026, 10, 4, 23, 7, 0, 250_000, tzinfo=UTC)
SECOND = 10**9
SAMPLES = "EDGE_POWERMETRICS_SAMPLES"
# Joules and seconds by hand: the energies in the plists.
REAL = {
    "M1_MacBookPro17,1_22E252_500ms.plist": ({"CPU": 0.054, "GPU": 0.010, "ANE": 0}, 0.525992374),
    "M2Ultra_Mac14,14_23E224.plist": ({"CPU": 0.855, "GPU": 72.607, "ANE": 0}, 1.023721416),
    "M4_Mac16,10_25G229_TRIMMED.plist": ({"CPU": 0.135, "GPU": 0.011, "ANE": 0}, 1.529245833),
}


def log(count=8, **changes):
    ends = [START + timedelta(seconds=0.5 * (n + 1)) for n in range(count)]
    return [record(n, ended=end, **changes) for n, end in enumerate(ends)]


def written(folder, data):
    path = folder / "power.log"
    path.write_bytes(data)
    return path


def whole(recording):
    return integrate(recording.samples, 0, recording.samples[-1].end_ns)


def test_a_stream_of_plists(tmp_path):
    recording = read_log(written(tmp_path, stream(log())))
    energy = whole(recording)
    assert energy.joules == pytest.approx({"CPU": 20.0, "GPU": 80.0, "ANE": 0.0})
    assert (energy.coverage, recording.samples[-1].end_ns) == (1.0, 4 * SECOND)
    assert recording.flags == ()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no record"),
        (b"Chapter 1", "not a record"),
        (b"\0" * 5000, "no record"),
        (record(cpu_energy=None), "no cpu_energy"),
        (b"*** Sampled system activity (Mon Mar  1 10:50:28 2021 -0800)", "not a record"),
    ],
)
def test_a_log_without_energy_is_an_error(tmp_path, data, words):
    with pytest.raises(EdgeError, match=words):
        read_log(written(tmp_path, data))


def test_a_log_that_is_not_there(tmp_path):
    with pytest.raises(EdgeError, match="cannot be read"):
        read_log(tmp_path / "none.plist")


def test_a_missing_stretch_is_a_hole(tmp_path):
    records = log(20)
    recording = read_log(written(tmp_path, stream(records[:6] + records[12:])))
    assert any("missing between records" in flag for flag in recording.flags)
    assert whole(recording).coverage == pytest.approx(0.7, abs=0.1)


def test_records_out_of_order_are_flagged(tmp_path):
    records = log(20)
    recording = read_log(written(tmp_path, stream(records[10:] + records[:10])))
    assert recording.flags


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "repeat", "insert", "swap", "drop"]),
        st.floats(0, 1, exclude_max=True),
        st.floats(0, 0.2),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)
CLEAN = stream(log(6))


def mutated(data, mutations):
    for what, where, length, junk in mutations:
        at = int(where * len(data))
        end = at + 1 + int(length * len(data))
        if what == "flip":
            data = data[:at] + junk[:1] + data[at + 1 :]
        elif what == "cut":
            data = data[:at] + data[end:]
        elif what == "repeat":
            data = data[:end] + data[at:]
        elif what == "insert":
            data = data[:at] + junk + data[at:]
        else:
            parts = data.split(b"\0")
            one = parts.pop(int(where * len(parts)))
            parts = [*parts, one] if what == "swap" else parts or [one]
            data = b"\0".join(parts)
    return data


@settings(
    max_examples=int(os.environ.get("EDGE_FUZZ_CASES", "200")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(MUTATIONS)
def test_no_mutation_invents_power_or_time(tmp_path, mutations):
    data = mutated(CLEAN, mutations)
    try:
        recording = read_log(written(tmp_path, data))
    except EdgeError:
        return
    for sample in recording.samples:
        seconds = (sample.end_ns - sample.begin_ns) / 1e9
        assert all(0 <= energy_j < 1000 * seconds for energy_j in sample.joules.values())
    assert all(a.end_ns <= b.begin_ns for a, b in pairwise(recording.samples))


@pytest.mark.skipif(SAMPLES not in os.environ, reason=f"{SAMPLES} names no folder of real logs")
@pytest.mark.parametrize("ending", REAL)
def test_real_logs(ending):
    (path,) = Path(os.environ[SAMPLES]).glob(f"*{ending}")
    recording = read_log(path)
    joules, seconds = REAL[ending]
    energy = whole(recording)
    assert energy.joules == pytest.approx(joules)
    assert recording.samples[-1].end_ns / 1e9 == pytest.approx(seconds, abs=1e-9)
    assert (energy.coverage, list(recording.flags)) == (1.0, [])


@pytest.mark.skipif(SAMPLES not in os.environ, reason=f"{SAMPLES} names no folder of real logs")
def test_a_real_log_of_the_gpu_sampler_alone_has_no_total():
    (path,) = Path(os.environ[SAMPLES]).glob("*_gpu_power_multiple_samples.plist")
    with pytest.raises(EdgeError, match="without the cpu_power sampler"):
        read_log(path)

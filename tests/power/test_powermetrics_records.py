"""Records of powermetrics: checked, cut out of a stream, placed in time."""

import os
import plistlib
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.power.meter import integrate
from edge.power.powermetrics_records import (
    MAX_RECORD_BYTES,
    BadRecordError,
    Record,
    RecordStream,
    Rejected,
    build_timeline,
    read_log,
    read_record,
)
from tests.support.alarm import alarm
from tests.support.fake_powermetrics import CHIPS, record, stream

MS, SECOND = 10**6, 10**9
START = datetime(2026, 10, 4, 23, 7, 0, 250_000, tzinfo=UTC)
SAMPLES = "EDGE_POWERMETRICS_SAMPLES"
# Joules and seconds, read from the plists by hand; None where the CPU was not sampled.
REAL = {
    "M1_MacBookPro17,1_22E252_500ms.plist": ({"CPU": 0.054, "GPU": 0.010, "ANE": 0}, 0.525992374),
    "M2Ultra_Mac14,14_23E224.plist": ({"CPU": 0.855, "GPU": 72.607, "ANE": 0}, 1.023721416),
    "M4_Mac16,10_25G229_TRIMMED.plist": ({"CPU": 0.135, "GPU": 0.011, "ANE": 0}, 1.529245833),
    "_gpu_power_multiple_samples.plist": None,
}

# --- one record


@pytest.mark.parametrize("chip", CHIPS)
def test_records_of_every_chip_are_read(chip):
    data = record(3, 505_000_000, 2525, 36000, chip, ane_energy="<real>12</real>")
    read = read_record(data)
    assert plistlib.loads(data)["gpu"]["gpu_energy"] == 36884  # of another window: not read
    assert read.joules == {"CPU": 2.525, "GPU": 36.0, "ANE": 0.012}
    assert (read.elapsed_ns, read.thermal) == (505_000_000, "nominal")
    assert read.ended.isoformat() == "2026-10-04T23:07:07+00:00"


def test_dram_is_added_and_the_package_of_an_old_macos_is_not():
    changes = {"dram_energy": "<integer>500</integer>", "package_energy": "<real>14000</real>"}
    read = read_record(record(combined_power=None, **changes))
    assert read.joules == {"CPU": 2.5, "GPU": 10.0, "ANE": 0.0, "DRAM": 0.5}
    assert read.beside == {"Package": 14.0}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (record(cpu_energy="<real>nan</real>"), "not of 0 to 1000 W"),
        (record(cpu_energy="<integer>-5</integer>"), "not of 0 to 1000 W"),
        (record(gpu_mj=10**6), "gpu_energy is not of 0 to 1000 W"),
        (record(cpu_energy=f"<integer>{'9' * 9000}</integer>"), "broken XML"),
        (record(cpu_energy="<true/>"), "no cpu_energy"),
        (record(extra="<key>is_delta</key><false/>"), "since boot"),
        (record(extra="<key>elapsed_ns</key><true/>"), "no elapsed_ns"),
        (record(extra="<key>processor</key><array/>"), "no processor"),
        (b"", "broken XML"),
        (b"<plist><dict><date>yesterday</date></dict></plist>", "broken XML"),
        (b"<plist>" + b"<array>" * 50000 + b"</array>" * 50000 + b"</plist>", "no dictionary"),
        (b'<!DOCTYPE plist [<!ENTITY a SYSTEM "/etc/passwd">]><plist>&a;</plist>', "broken XML"),
    ],
)
def test_impossible_and_hostile_records_are_refused(data, words):
    with pytest.raises(BadRecordError, match=words):
        read_record(data)


# --- streams


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_a_record_is_complete_at_its_end_tag(size):
    data = b"\0" + stream(record(n, chip="M4") for n in range(3)).rstrip()
    reader, read = RecordStream(), []
    for begin in range(0, len(data), size):
        read += reader.feed(data[begin : begin + size])
    assert (len(read), reader.rejected) == (3, [])  # no NUL follows the last one


def test_an_endless_record_is_not_buffered():
    reader = RecordStream()
    for chunk in (b"<?xml", *[b"x" * (1 << 16)] * 40):
        assert reader.feed(chunk) == []
        assert len(reader._buffer) <= MAX_RECORD_BYTES
    assert len(reader.feed(b"</plist>" + record())) == 1


# --- time


def records(*cpu_j):
    return [Record(500 * MS, {"CPU": j, "GPU": 1.0, "ANE": 0.0}) for j in cpu_j]


def arrivals(late_ms):
    """Stamps of six records, each 5 ms late and some later."""
    return [(7000 + (n + 1) * 500 + 5 + late_ms.get(n, 0)) * MS for n in range(6)]


@pytest.mark.parametrize(
    ("late_ms", "moved_ms", "flag"),
    [
        ({0: 90, 2: 300}, 0, None),
        (dict.fromkeys(range(3, 6), 1500), 1500, "1.5 s are missing between records"),
        (dict.fromkeys(range(3, 6), -1500), 0, "the records cover 1.5 s more than passed"),
    ],
)
def test_late_arrivals_move_nothing_and_missing_time_moves_what_follows(late_ms, moved_ms, flag):
    line = build_timeline(records(*[1] * 6), arrivals(late_ms), 100 * MS)
    assert [words.startswith(flag) for words in line.flags] == ([True] if flag else [])
    assert all(s.length_ns == 500 * MS for s in line.samples)
    gaps_ns = [b.begin_ns - a.end_ns for a, b in pairwise(line.samples)]
    assert gaps_ns == [0, 0, moved_ms * MS, 0, 0]
    if not flag:
        assert [s.end_ns for s in line.samples] == arrivals({})


def test_a_batch_is_spread_over_its_time():
    line = build_timeline(records(0, 0, 0, 8, 0, 0, 0, 8), None, 0)
    assert [(s.begin_ns, s.joules["CPU"]) for s in line.samples] == [(0, 8.0), (2 * SECOND, 8.0)]
    half = integrate(line.samples, 0, SECOND)
    assert half.joules["CPU"] == pytest.approx(4.0)
    assert half.edge_error_j >= 4.0  # its time within the batch is unknown
    assert build_timeline(records(*[0] * 10, 60), None, 0).flags == ()  # 5 s are not yet a stall


def test_zeros_at_the_end_and_rejected_records_are_flagged():
    rejected = [Rejected("broken XML"), Rejected("broken XML"), Rejected("no energy")]
    line = build_timeline(records(1, 1, 0, 0), None, 0, rejected)
    assert line.flags[0] == "2 records were not counted: broken XML"
    assert line.flags[1] == "1 record was not counted: no energy"
    assert "did not move in the last 1.0 s" in line.flags[2]


# --- logs


def log(count):
    ends = [START + timedelta(seconds=0.5 * (n + 1)) for n in range(count)]
    return [record(n, ended=end) for n, end in enumerate(ends)]


def replayed(folder, data):
    path = folder / "power.log"
    path.write_bytes(data)
    return read_log(path)


def energy_of(timeline):
    return integrate(timeline.samples, timeline.samples[0].begin_ns, timeline.samples[-1].end_ns)


NO_DATE = "<key>timestamp</key><string/>"  # the last of two keys counts


@pytest.mark.parametrize("place", [0, 3, 7])
@pytest.mark.parametrize("extra", ["", NO_DATE])
@pytest.mark.parametrize(
    ("changes", "missing_s"),
    [
        ({"cpu_energy": "<integer>1000000</integer>"}, 0.5),
        ({"gpu_energy": "<real>nan</real>"}, 0.5),
        ({"cpu_energy": "<integer>-1</integer>"}, 0.5),
        ({"cpu_energy": None}, 0.5),
        ({"elapsed_ns": 700 * MS, "gpu_energy": "<real>inf</real>"}, 0.7),
        *((elapsed_ns, 0.5) for elapsed_ns in (0, -1, 1, 3600 * SECOND, 10**18)),
        ("cut", 0.5),
        ("junk", 0.0),
        ("twice", 0.0),
        ("swapped", 0.0),
    ],
)
def test_a_record_that_is_not_believable_is_missing_time(
    tmp_path, place, extra, changes, missing_s
):
    ends = [START + timedelta(seconds=0.5 * (n + 1)) for n in range(8)]
    spoilt = [record(n, ended=end, extra=extra) for n, end in enumerate(ends)]
    if isinstance(changes, int):
        extra += f"<key>elapsed_ns</key><integer>{changes}</integer>"
        changes = {}
    if changes == "cut":
        spoilt[place] = spoilt[place][: 9000 if place < 7 else -12]
    elif changes == "junk":
        spoilt.insert(place, b"\xff\xfe{not a record}</plist>")
    elif changes == "twice":
        spoilt.insert(place, spoilt[place])
    elif changes == "swapped":
        spoilt[place - 1 : place + 1] = spoilt[place - 1 : place + 1][::-1]
    else:
        spoilt[place] = record(place, ended=ends[place], extra=extra, **changes)
    log = replayed(tmp_path, stream(spoilt))
    good = 8 - (missing_s > 0)
    energy = integrate(log.samples, log.begin_ns, log.end_ns)
    assert (len(log.samples), energy.total_j) == (good, pytest.approx(12.5 * good))
    assert (log.end_ns - log.begin_ns) / SECOND == pytest.approx(good / 2 + missing_s)
    assert energy.coverage == pytest.approx(good / 2 / (good / 2 + missing_s))
    if changes != "swapped":
        assert "not counted" in log.flags[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0" * 5000, "no record"),
        (record(cpu_energy=None), "no cpu_energy"),
        (b"*** Sampled system activity (Mon Mar  1 10:50:28 2021 -0800)", "not a record"),
    ],
)
def test_a_log_without_energy_is_an_error(tmp_path, data, words):
    with pytest.raises(EdgeError, match=words):
        replayed(tmp_path, data)
    with pytest.raises(EdgeError, match="is missing"):
        read_log(tmp_path / "none.plist")


SPLICE = st.tuples(st.floats(0, 1), st.floats(0, 1), st.binary(max_size=8))
NUMBER = st.sampled_from(["0", "-1", "1", "499000000", "7e99", "nan", "9" * 30, "1e6", "0x10", ""])


@settings(
    max_examples=int(os.environ.get("EDGE_FUZZ_CASES", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.integers(0, 5), max_size=8),
    st.lists(st.tuples(st.integers(0, 20), NUMBER), max_size=3),
    st.lists(SPLICE, max_size=3),
)
def test_mutated_logs_have_the_energy_of_their_plists_and_no_more(
    tmp_path, order, numbers, splices
):
    clean = log(6)
    data = stream(clean[number] for number in order)
    for place, text in numbers:
        places = [*VALUE.finditer(data)]
        if places:
            begin, end = places[place % len(places)].span(1)
            data = data[:begin] + text.encode() + data[end:]
    for begin, end, junk in splices:  # it cuts, inserts or repeats
        data = data[: int(begin * len(data))] + junk + data[int(end * len(data)) :]
    with alarm():
        try:
            timeline = replayed(tmp_path, data)
        except EdgeError:
            return
        text = RecordStream()
        read = [*text.feed(data)]
    samples, span_ns = timeline.samples, timeline.end_ns - timeline.begin_ns
    for sample in samples:
        assert all(0 <= j < 1000 * sample.length_ns / 1e9 for j in sample.joules.values())
    assert all(a.end_ns <= b.begin_ns for a, b in pairwise(samples))
    lost = sum(part.elapsed_ns is not None for part in text.rejected)
    covered_ns = sum(sample.length_ns for sample in samples)
    assert covered_ns <= span_ns and (covered_ns < span_ns or not lost)
    # Accepted values are those of the reference reader.
    plists = [*filter(None, map(plist_of, data.split(b"</plist>")))]
    for one in read:
        processor = [(p["elapsed_ns"], p["processor"].get("cpu_energy")) for p in plists]
        assert (one.elapsed_ns, pytest.approx(one.joules["CPU"] * 1000)) in processor


VALUE = re.compile(rb"<key>(?:elapsed_ns|cpu_energy|gpu_energy)</key>\s*<\w+>([^<]*)<")


def plist_of(part):
    """The record at the end of a part, as plistlib reads it; None if it cannot."""
    with suppress(Exception):
        found = plistlib.loads(part[part.rindex(b"<?xml") :] + b"</plist>")
        return found if found["elapsed_ns"] and found["processor"] else None


@pytest.mark.skipif(SAMPLES not in os.environ, reason=f"{SAMPLES} names no folder of real logs")
@pytest.mark.parametrize("ending", REAL)
def test_real_logs_have_their_energy(ending):
    (path,) = Path(os.environ[SAMPLES]).glob(f"*{ending}")
    if REAL[ending] is None:
        with pytest.raises(EdgeError, match="without the cpu_power sampler"):
            read_log(path)
        return
    log, (joules, seconds) = read_log(path), REAL[ending]
    assert energy_of(log).joules == pytest.approx(joules)
    length_ns = log.samples[-1].end_ns - log.samples[0].begin_ns
    assert length_ns / 1e9 == pytest.approx(seconds, abs=1e-9)
    assert (energy_of(log).coverage, log.flags) == (1.0, ())

import os
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.power.meter import integrate
from edge.power.replay import ReplayMeter, read_log
from tests.support.fake_powermetrics import record, stream

START = datetime(2026, 10, 4, 23, 7, 0, 250_000, tzinfo=UTC)
SECOND = 10**9
SAMPLES = "EDGE_POWERMETRICS_SAMPLES"
# Joules and seconds by hand: the energies in the plists, milliwatts x elapsed in the texts.
REAL = {
    "M1_MacBookPro17,1_22E252_500ms.plist": ({"CPU": 0.054, "GPU": 0.010, "ANE": 0}, 0.525992374),
    "M2Ultra_Mac14,14_23E224.plist": ({"CPU": 0.855, "GPU": 72.607, "ANE": 0}, 1.023721416),
    "M4_Mac16,10_25G229_TRIMMED.plist": ({"CPU": 0.135, "GPU": 0.011, "ANE": 0}, 1.529245833),
    "Intel_MacBookPro15,1_23C71.txt": ({"Package": 8.5503014}, 1.00238),
    "M4Pro_Mac16,8_25A362_usage-summary.txt": (
        {"CPU": 4.392423, "GPU": 1.0248987, "ANE": 0},
        10.45815,
    ),
    "M1_Macmini9,1_20D80_summary-block_excerpt.txt": (
        {"CPU": 0.03658572, "GPU": 0.01321151, "ANE": 0, "DRAM": 0.01524405},
        1.01627,
    ),
}
BLOCK = """*** Sampled system activity ({when}) (500.00ms elapsed) ***


**** Processor usage ****

E-Cluster Power: 400 mW
CPU 0 idle residency: {n}.51%
{power}
**** GPU usage ****

GPU Power: 77777 mW
"""
OLD = "P-Cluster Power: 600 mW\n\nANE Power: 2 mW\nDRAM Power: 300 mW\n{cpu}: 1000 mW\n"
OLD += "GPU Power: 4000 mW\nPackage Power: 6000 mW\n"
TEXTS = {
    "macOS 11": OLD.format(cpu="Clusters Total Power"),
    "macOS 12": OLD.format(cpu="CPU Power"),
    "macOS 13": "CPU Power: 1000 mW\nGPU Power: 4000 mW\nANE Power: 2 mW\n"
    "Combined Power (CPU + GPU + ANE): 5003 mW\n",
    "Intel": "Intel energy model derived package power (CPUs+GT+SA): 8.50W\n",
}


def text_log(power, blocks=4, summary=True):
    head = "Machine model: Macmini9,1\nOS version: 20D80\nBoot arguments: \n\n"
    parts = [
        BLOCK.format(when=f"Mon Mar  1 10:50:{28 + n // 2} 2021 -0800", power=power, n=n)
        for n in range(blocks)
    ]
    last = BLOCK.format(when="Mon Mar  1 10:50:30 2021 -0800", power=power, n=99)
    last = last.replace("Sampled", "Summary").replace("500.00", "2000.00")
    return head + "\n".join([*parts, last] if summary else parts)


def log(count=8, **changes):
    ends = [START + timedelta(seconds=0.5 * (n + 1)) for n in range(count)]
    return [record(n, ended=end, **changes) for n, end in enumerate(ends)]


def written(folder, data):
    path = folder / "power.log"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def whole(recording):
    return integrate(recording.samples, 0, recording.samples[-1].end_ns)


def test_a_stream_of_plists(tmp_path):
    recording = read_log(written(tmp_path, stream(log())))
    energy = whole(recording)
    assert energy.joules == pytest.approx({"CPU": 20.0, "GPU": 80.0, "ANE": 0.0})
    assert (energy.coverage, recording.samples[-1].end_ns) == (1.0, 4 * SECOND)
    assert recording.flags == ()
    assert recording.hw_model == "MacBookPro17,1"
    assert recording.ended[0] == datetime(2026, 10, 4, 23, 7, 0, tzinfo=UTC)
    assert abs(recording.wall_begin_ns / 1e9 - START.timestamp()) <= 0.3


@pytest.mark.parametrize("release", TEXTS)
def test_text_of_every_release_counts_each_watt_once(tmp_path, release):
    recording = read_log(written(tmp_path, text_log(TEXTS[release])))
    expected = {"CPU": 2.0, "GPU": 8.0, "ANE": 0.004}
    if release in ("macOS 11", "macOS 12"):
        expected["DRAM"] = 0.6
    if release == "Intel":
        expected = {"Package": 17.0}
    assert whole(recording).joules == pytest.approx(expected)
    assert recording.flags == ()
    assert recording.ended[0] == datetime(2021, 3, 1, 18, 50, 28, tzinfo=UTC)
    assert ("without DRAM" in recording.boundary) == ("DRAM" not in expected)


def test_a_summary_alone_is_the_whole_run(tmp_path):
    text = text_log(TEXTS["macOS 13"], blocks=0)
    recording = read_log(written(tmp_path, text))
    assert whole(recording).joules["CPU"] == pytest.approx(2.0)


def test_text_that_contradicts_itself_is_not_counted(tmp_path):
    text = text_log(TEXTS["macOS 13"], 2).replace("CPU Power: 1000", "CPU Power: 9000", 1)
    recording = read_log(written(tmp_path, text))
    assert len(recording.samples) == 1
    assert "combined power is not the sum" in recording.flags[0]


@pytest.mark.parametrize("cut", range(40, 160, 7))
def test_a_text_cut_in_its_last_block_keeps_the_others(tmp_path, cut):
    text = text_log(TEXTS["macOS 13"], 3, summary=False)[:-cut]
    recording = read_log(written(tmp_path, text))
    assert len(recording.samples) in (2, 3)
    assert len(recording.samples) == 3 or recording.flags
    assert all(s.joules["CPU"] == 0.5 for s in recording.samples)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no record"),
        (b"Chapter 1", "not a record"),
        (b"\0" * 5000, "no record"),
        (record(cpu_energy=None), "no cpu_energy"),
        (b"Machine model: x\n", "no record"),
    ],
)
def test_a_log_without_energy_is_an_error(tmp_path, data, words):
    with pytest.raises(EdgeError, match=words):
        read_log(written(tmp_path, data))


def test_a_log_that_is_not_there(tmp_path):
    with pytest.raises(EdgeError, match="cannot be read"):
        read_log(tmp_path / "none.plist")
    assert "not there" in ReplayMeter(tmp_path / "none.plist").unavailable


def test_a_missing_stretch_is_a_hole(tmp_path):
    records = log(20)
    recording = read_log(written(tmp_path, stream(records[:6] + records[12:])))
    assert any("missing between records" in flag for flag in recording.flags)
    assert whole(recording).coverage == pytest.approx(0.7, abs=0.1)


def test_records_out_of_order_are_flagged(tmp_path):
    records = log(20)
    recording = read_log(written(tmp_path, stream(records[10:] + records[:10])))
    assert recording.flags


def test_a_log_written_meanwhile_lands_on_the_monotonic_clock(tmp_path):
    path = written(tmp_path, b"")
    now_ns = 500 * SECOND
    wall_ns = int((START + timedelta(seconds=10)).timestamp() * 1e9)
    meter = ReplayMeter(path, lambda: wall_ns, lambda: now_ns)
    meter.start()
    written(tmp_path, stream(log(20)))
    samples = meter.stop()
    assert meter.unavailable is None
    # It ran for the ten seconds before now; whole-second stamps tell where to half a second.
    assert samples[0].begin_ns == pytest.approx(490 * SECOND, abs=0.5 * SECOND)
    assert samples[-1].end_ns == pytest.approx(now_ns, abs=0.5 * SECOND)


def test_a_log_that_stays_empty_is_a_reason(tmp_path):
    meter = ReplayMeter(written(tmp_path, b""))
    assert list(meter.stop()) == []
    assert "holds no energy" in meter.unavailable


def oracle_j(data):
    """Energy in a spoiled stream, by other means than the parser's: what each record proves.

    Regular expressions on the text, a record's own powers as the proof of its energies.
    """
    total, seen = 0.0, set()
    for frame in data.split(b"</plist>")[:-1]:
        text = frame[max(frame.rfind(b"<?xml"), 0) :]
        found = re.findall(rb"<key>(cpu|gpu)_energy</key>[^<]+<integer>(\d+)</integer>", text)
        if text in seen or len(found) < 2:
            continue
        seen.add(text)
        # What comes before the last two belongs to a record that was cut. The ANE's is 0.
        total += sum(int(mj) for _, mj in found[-2:]) / 1e3
    return total


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
def test_no_mutation_invents_a_number(tmp_path, mutations):
    data = mutated(CLEAN, mutations)
    try:
        recording = read_log(written(tmp_path, data))
    except EdgeError:
        return
    total_j = whole(recording).total_j
    assert all(0 <= s.joules[rail] < 500 for s in recording.samples for rail in s.joules)
    assert all(a.end_ns <= b.begin_ns for a, b in pairwise(recording.samples))
    # Every record of this log holds the same energy: no other amount can come of it.
    assert total_j == pytest.approx(12.5 * len(recording.samples), rel=1e-3)
    assert total_j <= oracle_j(data) * 1.001
    assert total_j == pytest.approx(oracle_j(data), rel=1e-3) or recording.flags


@settings(
    max_examples=int(os.environ.get("EDGE_FUZZ_CASES", "200")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(MUTATIONS, st.sampled_from(sorted(TEXTS)))
def test_no_mutation_of_a_text_breaks_the_reader(tmp_path, mutations, release):
    data = mutated(text_log(TEXTS[release]).encode(), mutations)
    try:
        recording = read_log(written(tmp_path, data))
    except EdgeError:
        return
    assert all(0 <= j < 1000 * (s.end_ns - s.begin_ns) / 1e9 for s in recording.samples
               for j in s.joules.values())  # fmt: skip


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
def test_a_real_text_of_ten_records():
    (path,) = Path(os.environ[SAMPLES]).glob("*M1_MacBookAir10,1_21G115.txt")
    text = path.read_text()
    expected = dict.fromkeys(("CPU", "GPU", "ANE", "DRAM"), 0.0)
    for block in text.split("*** Sampled")[1:]:
        ms = float(re.search(r"([\d.]+)ms elapsed", block)[1])
        for rail in expected:
            expected[rail] += int(re.search(rf"\n{rail} Power: (\d+) mW", block)[1]) * ms / 1e6
    assert whole(read_log(path)).joules == pytest.approx(expected)


@pytest.mark.skipif(SAMPLES not in os.environ, reason=f"{SAMPLES} names no folder of real logs")
def test_a_real_log_of_the_gpu_sampler_alone_has_no_total():
    (path,) = Path(os.environ[SAMPLES]).glob("*_gpu_power_multiple_samples.plist")
    with pytest.raises(EdgeError, match="without the cpu_power sampler"):
        read_log(path)

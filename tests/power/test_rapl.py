"""RAPL on a real directory tree, laid out as the kernel's; time is the tests' own."""

import threading
from time import monotonic_ns

import pytest

from edge.power import rapl
from edge.power.rapl import RaplMeter
from tests.power.counters import Time, contiguous, span_s, totals

RANGE_UJ = 262_143_328_850  # of a desktop i7


class Machine:
    """A powercap tree. Watts per zone; its counters follow the clock."""

    def __init__(self, root, watts, names, range_uj=RANGE_UJ, first_uj=1_000_000):
        self.root, self.watts, self.range_uj = root, watts, range_uj
        self.first_uj = first_uj
        for zone, name in names.items():
            folder = root / zone
            folder.mkdir(parents=True)
            (folder / "name").write_text(f"{name}\n")
            (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        (root / "intel-rapl").mkdir()  # the control type, which is no zone
        self.tick(0)

    def tick(self, now_s):
        for zone, watts in self.watts.items():
            energy_uj = (self.first_uj + int(watts * now_s * 1e6)) % self.range_uj
            (self.root / zone / "energy_uj").write_text(f"{energy_uj}\n")


SERVER = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0:0": "core",
    "intel-rapl:0:1": "dram",
    "intel-rapl:1": "package-1",
    "intel-rapl:1:0": "core",
    "intel-rapl:1:1": "dram",
    "intel-rapl:2": "psys",
    "intel-rapl-mmio:0": "package-0",
}
SERVER_W = {
    "intel-rapl:0": 60.0, "intel-rapl:0:0": 45.0, "intel-rapl:0:1": 7.0,
    "intel-rapl:1": 50.0, "intel-rapl:1:0": 35.0, "intel-rapl:1:1": 5.0,
    "intel-rapl:2": 180.0, "intel-rapl-mmio:0": 60.0,
}  # fmt: skip


def measured(machine, seconds=10.0):
    time = Time(machine.tick, seconds)
    meter = RaplMeter(machine.root, time.clock, time.wait)
    assert meter.unavailable is None
    meter.start()
    return meter, meter.stop()


def test_packages_and_dram_add_up_and_nothing_counts_twice(tmp_path):
    meter, samples = measured(Machine(tmp_path, SERVER_W, SERVER))
    seconds = span_s(samples)
    assert contiguous(samples) and seconds == pytest.approx(10, abs=0.5)
    expected = {"package-0": 60, "package-1": 50, "dram-0": 7, "dram-1": 5}
    assert totals(samples) == pytest.approx(
        {rail: watts * seconds for rail, watts in expected.items()}, rel=1e-3
    )
    assert samples[0].beside.keys() == {"core-0", "core-1", "psys"}
    assert meter.boundary == "package-0 + dram-0 + package-1 + dram-1 (RAPL), without GPU boards"
    assert meter.flags == ()


def test_a_client_says_that_dram_is_missing(tmp_path):
    names = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "uncore"}
    meter, samples = measured(
        Machine(tmp_path, {"intel-rapl:0": 15.0, "intel-rapl:0:0": 3.0}, names)
    )
    assert meter.boundary == "package-0 (RAPL), without GPU boards and without DRAM"
    assert samples[0].joules.keys() == {"package-0"}


def test_counters_wrap_around(tmp_path):
    """At 100 W and a range of 300 J the counter starts again three times in ten seconds."""
    machine = Machine(
        tmp_path, {"intel-rapl:0": 100.0}, {"intel-rapl:0": "package-0"}, 300_000_000, 299_000_000
    )
    meter, samples = measured(machine)
    assert totals(samples)["package-0"] == pytest.approx(100 * span_s(samples), rel=1e-3)
    assert meter.flags == ()


def test_a_counter_that_is_reset_is_no_energy(tmp_path):
    machine = Machine(tmp_path, {"intel-rapl:0": 20.0}, {"intel-rapl:0": "package-0"})

    def tick(now_s):
        machine.first_uj = 50_000_000 if now_s < 5 else -100_000_000
        machine.tick(now_s)

    time = Time(tick, 10)
    meter = RaplMeter(tmp_path, time.clock, time.wait)
    meter.start()
    samples = meter.stop()
    assert totals(samples)["package-0"] == pytest.approx(200, rel=0.1)
    assert len(meter.flags) == 1 and "jumped" in meter.flags[0]


def test_a_counter_that_vanishes_is_a_flag(tmp_path):
    machine = Machine(tmp_path, {"intel-rapl:0": 20.0}, {"intel-rapl:0": "package-0"})

    def tick(now_s):
        if now_s < 5:
            machine.tick(now_s)
        else:
            (tmp_path / "intel-rapl:0" / "energy_uj").unlink(missing_ok=True)

    time = Time(tick, 10)
    meter = RaplMeter(tmp_path, time.clock, time.wait)
    meter.start()
    samples = meter.stop()
    assert span_s(samples) < 5.1
    assert len(meter.flags) == 1 and "could not be read any more" in meter.flags[0]


def test_with_a_real_thread_and_clock(tmp_path, monkeypatch):
    """Nothing of the meter is replaced here but the counter, which grows with the real clock."""
    Machine(tmp_path, {"intel-rapl:0": 10.0}, {"intel-rapl:0": "package-0"})
    monkeypatch.setattr(rapl, "read_uj", lambda zone: monotonic_ns() // 100)
    meter, before = RaplMeter(tmp_path), threading.active_count()
    begin_ns = monotonic_ns()
    meter.start()
    assert threading.active_count() == before + 1
    end_ns = monotonic_ns()
    samples = meter.stop()
    assert threading.active_count() == before
    assert begin_ns < samples[0].begin_ns <= end_ns < samples[-1].end_ns
    assert totals(samples)["package-0"] == pytest.approx(10 * span_s(samples), rel=0.2)
    assert meter.flags == ()


def test_a_second_measurement_starts_afresh(tmp_path):
    machine = Machine(tmp_path, SERVER_W, SERVER)
    time = Time(machine.tick, 5)
    meter = RaplMeter(tmp_path, time.clock, time.wait)
    meter.start()
    first = meter.stop()
    meter.start()
    second = meter.stop()
    assert second and second[0].begin_ns >= first[-1].end_ns


# --- not available


def test_no_zone(tmp_path):
    meter = RaplMeter(tmp_path)
    assert "no RAPL package" in meter.unavailable
    meter.start()
    assert meter.stop() == ()


def test_a_virtual_machines_counter_stands_still(tmp_path):
    machine = Machine(tmp_path, {"intel-rapl:0": 0.0}, {"intel-rapl:0": "package-0"})
    time = Time(machine.tick, 10)
    meter = RaplMeter(tmp_path, time.clock, time.wait)
    assert "stand still" in meter.unavailable


def test_root_alone_may_read(tmp_path, monkeypatch):
    """The kernel's answer to `read`; the tests may run as root, whom nothing is forbidden."""

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    Machine(tmp_path, SERVER_W, SERVER)
    monkeypatch.setattr(rapl, "read_uj", forbidden)
    reason = RaplMeter(tmp_path).unavailable
    assert "CVE-2020-8694" in reason
    assert f"sudo chgrp $(id -gn) {tmp_path}/intel-rapl:*/energy_uj && sudo chmod g+r" in reason


def test_a_counter_that_is_no_number(tmp_path):
    machine = Machine(tmp_path, {"intel-rapl:0": 9.0}, {"intel-rapl:0": "package-0"})
    (machine.root / "intel-rapl:0" / "energy_uj").write_text("")
    assert "cannot be read" in RaplMeter(tmp_path).unavailable


def test_the_real_tree_gives_samples_or_a_reason():
    meter = RaplMeter()
    if meter.unavailable is not None:
        assert "RAPL" in meter.unavailable
        return
    meter.start()
    assert all(sample.joules for sample in meter.stop())

"""IOReport against a stand-in for AppleEnergyMonitor, which only Macs have.

The stand-in has the interface of zeus-apple-silicon 1.1.0 as its bindings declare it: a class
of millijoules as whole numbers, or lists of them per core or cluster, each None where the chip has
no such counter; a monitor without arguments, whose errors are RuntimeError and ValueError.
"""

import sys
from dataclasses import dataclass, fields
from importlib import metadata
from types import ModuleType

import pytest

from edge.power import ioreport
from edge.power.ioreport import IoReportMeter
from tests.power.counters import Time, contiguous, span_s, totals

WATTS = {"cpu_total_mj": 4.0, "gpu_mj": 20.0, "ane_mj": 0.0, "dram_mj": 3.0, "gpu_sram_mj": 0.5}


@dataclass
class AppleEnergyMetrics:
    """All of its attributes, in the order of the bindings."""

    cpu_total_mj: int | None = None
    efficiency_cores_mj: list[int] | None = None
    performance_cores_mj: list[int] | None = None
    efficiency_cluster_mj: list[int] | None = None
    performance_cluster_mj: list[int] | None = None
    efficiency_core_manager_mj: int | None = None
    performance_core_manager_mj: int | None = None
    dram_mj: int | None = None
    gpu_mj: int | None = None
    gpu_sram_mj: int | None = None
    ane_mj: int | None = None


class AppleEnergyMonitor:
    """Cumulative millijoules; those of `batched` are published every `batch_s` only."""

    def __init__(self, watts=WATTS, batch_s=0.001, batched=("cpu_total_mj", "ane_mj", "dram_mj")):
        self.watts, self.batch_s, self.batched = watts, batch_s, batched
        self.frozen_at_s = float("inf")
        self.tick(0.0)

    def tick(self, now_s):
        published_s = min(now_s, self.frozen_at_s) // self.batch_s * self.batch_s
        self.metrics = AppleEnergyMetrics(
            **{
                name: None
                if watts is None
                else int(watts * 1000 * (published_s if name in self.batched else now_s)) + 7000
                for name, watts in self.watts.items()
            }
        )

    def get_cumulative_energy(self):
        return self.metrics

    def begin_window(self, key, restart=False):
        raise RuntimeError("Measurement with specified key already exists.")

    def end_window(self, key):
        raise RuntimeError("No measurement with provided key had been started.")


def make(monitor, seconds=20.0):
    time = Time(monitor.tick, seconds)
    return IoReportMeter(lambda: monitor, time.clock, time.wait)


def measured(meter):
    assert meter.unavailable is None
    meter.start()
    return meter.stop()


def test_live_counters():
    meter = make(AppleEnergyMonitor())
    samples = measured(meter)
    seconds = span_s(samples)
    assert contiguous(samples) and seconds == pytest.approx(20, abs=0.5)
    assert totals(samples) == pytest.approx(
        {"CPU": 4 * seconds, "GPU": 20 * seconds, "ANE": 0, "DRAM": 3 * seconds}, rel=0.01
    )
    assert sum(s.beside["GPU SRAM"] for s in samples) == pytest.approx(0.5 * seconds, rel=0.01)
    assert meter.boundary == "CPU + GPU + ANE + DRAM of the SoC, without display, SSD and fans"
    assert meter.flags == ()


def test_batches_of_macos_27_make_long_samples_not_spikes():
    """Every 2.2 s: cut at the reader's own ticks, power would read 0 W and then 35 W."""
    meter = make(AppleEnergyMonitor(batch_s=2.2), 30.0)
    samples = measured(meter)
    powers_w = [
        sample.joules["CPU"] / (sample.end_ns - sample.begin_ns) * 1e9 for sample in samples
    ]
    assert len(samples) >= 10
    assert powers_w == pytest.approx([4.0] * len(samples), rel=0.15)
    assert totals(samples)["CPU"] == pytest.approx(4 * span_s(samples), rel=0.03)
    assert len(meter.flags) == 1 and "batches up to 2." in meter.flags[0]


def test_sampling_goes_on_past_the_end_until_the_next_batch():
    monitor = AppleEnergyMonitor(batch_s=2.2)
    time = Time(monitor.tick, 10.0)
    meter = IoReportMeter(lambda: monitor, time.clock, time.wait)
    meter.start()
    samples = meter.stop()
    assert samples[-1].end_ns >= 10**12 + 10e9


def test_a_counter_that_stalls_leaves_the_gpu_alone_and_says_so():
    monitor = AppleEnergyMonitor()
    monitor.frozen_at_s = 8.0
    meter = make(monitor)
    samples = measured(meter)
    assert samples[-1].joules.keys() == {"GPU"}
    assert totals(samples)["CPU"] == pytest.approx(32, rel=0.05)
    assert totals(samples)["GPU"] == pytest.approx(20 * span_s(samples), rel=0.01)
    assert "the counter of CPU stood still" in meter.flags[0]


def test_counters_that_never_move_give_no_watts_of_the_cpu():
    """Some Macs with macOS 27 need powermetrics to be running."""
    monitor = AppleEnergyMonitor()
    monitor.frozen_at_s = 0.0
    meter = make(monitor)
    assert "CPU" not in totals(measured(meter))
    assert "stood still" in meter.flags[0]


def test_a_counter_that_wakes_up_releases_no_energy_from_before():
    """It stood still from the start, and what it then publishes is older than the window."""
    monitor = AppleEnergyMonitor()

    def tick(now_s):
        monitor.tick(now_s)
        monitor.metrics.cpu_total_mj = 7000 if now_s < 9 else 5_000_000 + int(now_s * 4000)

    time = Time(tick, 20)
    meter = IoReportMeter(lambda: monitor, time.clock, time.wait)
    samples = measured(meter)
    assert totals(samples)["CPU"] == pytest.approx(4 * span_s(samples), rel=0.01)
    assert samples[0].begin_ns >= 10**12 + 9e9
    assert len(meter.flags) == 1 and "at the start" in meter.flags[0]


def test_an_unknown_rail_is_left_out_and_named():
    meter = make(AppleEnergyMonitor({**WATTS, "dram_mj": None, "gpu_sram_mj": None}))
    assert totals(measured(meter)).keys() == {"CPU", "GPU", "ANE"}
    assert "without DRAM" in meter.boundary


def test_a_virtual_mac_has_no_energy_model():
    meter = IoReportMeter(lambda: AppleEnergyMonitor(dict.fromkeys(WATTS)))
    assert "virtual machine" in meter.unavailable
    meter.start()
    assert meter.stop() == ()


def test_a_failing_library_is_a_reason():
    def load():
        raise RuntimeError("Failed to create subscription")

    assert IoReportMeter(load).unavailable == "IOReport failed: Failed to create subscription"


def test_other_systems_have_none(monkeypatch):
    monkeypatch.setattr(ioreport.platform, "system", lambda: "Linux")
    assert "Apple silicon only" in IoReportMeter().unavailable


@pytest.fixture
def mac(monkeypatch):
    """mac(answers, version): a Mac with the package, and what sysctl says of it."""

    def make(version="1.1.0", **answers):
        package = ModuleType("zeus_apple_silicon")
        package.AppleEnergyMonitor = AppleEnergyMonitor
        package.AppleEnergyMetrics = AppleEnergyMetrics
        names = {"vm": "kern.hv_vmm_present", "chip": "machdep.cpu.brand_string"}
        said = {names[key]: answer for key, answer in answers.items()}
        monkeypatch.setattr(ioreport.platform, "system", lambda: "Darwin")
        monkeypatch.setattr(ioreport.platform, "machine", lambda: "arm64")
        monkeypatch.setattr(ioreport, "output_of", lambda command: said.get(command[-1], ""))
        monkeypatch.setattr(ioreport.metadata, "version", {ioreport.PACKAGE: version}.__getitem__)
        monkeypatch.setitem(sys.modules, "zeus_apple_silicon", package)
        return IoReportMeter()

    return make


def test_on_a_mac_the_package_is_asked_for(mac, monkeypatch):
    assert mac(chip="Apple M2 Max", vm="0").unavailable is None
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", None)
    assert IoReportMeter().unavailable.endswith(" zeus-apple-silicon")


def test_a_virtual_machine_is_refused_before_the_library_is_asked(mac, monkeypatch):
    monkeypatch.setattr(AppleEnergyMonitor, "__init__", lambda self: pytest.fail("it would crash"))
    assert "virtual machine" in mac(chip="Apple M2 Max (Virtual)", vm="1").unavailable


@pytest.mark.parametrize("version", ["1.0.4", "1.1.0"])
def test_a_release_that_counts_one_die_of_two_is_refused(mac, version):
    reason = mac(version, chip="Apple M2 Ultra", vm="0").unavailable
    assert reason.startswith(f"zeus-apple-silicon {version} counts only one of the two dies")


def test_a_release_that_counts_both_dies_is_not(mac):
    assert mac("1.1.1", chip="Apple M2 Ultra", vm="0").unavailable is None
    assert mac("1.10", chip="Apple M3 Ultra", vm="0").unavailable is None


def test_every_rail_is_an_attribute_of_the_metrics():
    known = {field.name for field in fields(AppleEnergyMetrics)}
    assert {*ioreport.RAILS.values(), *ioreport.BESIDE.values()} <= known


@pytest.mark.skipif(sys.platform != "darwin", reason="the package is for Macs only")
def test_the_installed_package_has_the_attributes_of_the_stand_in():
    zeus = pytest.importorskip("zeus_apple_silicon")
    real = {name for name in dir(zeus.AppleEnergyMetrics) if not name.startswith("_")}
    assert real >= {field.name for field in fields(AppleEnergyMetrics)}
    assert metadata.version(ioreport.PACKAGE)

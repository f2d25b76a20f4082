"""IOReport against a fake with the interface of zeus-apple-silicon 1.1.0."""

import re
import sys
from types import ModuleType, SimpleNamespace

import pytest

from edge.errors import EdgeError
from edge.power import ioreport
from edge.power.ioreport import IoReportMeter
from tests.power.conftest import measured, span_s, totals

WATTS = {"cpu_total_mj": 4.0, "gpu_mj": 20.0, "ane_mj": 0.0, "dram_mj": 3.0, "gpu_sram_mj": 0.5}


class AppleEnergyMonitor:
    """Cumulative millijoules; those of the GPU at once, the others every `batch_s`."""

    def __init__(self, watts=WATTS, batch_s=0.001):
        self.watts, self.batch_s, self.now_s = watts, batch_s, 0.0

    def tick(self, now_s):
        self.now_s = now_s

    def get_cumulative_energy(self):
        published_s = self.now_s // self.batch_s * self.batch_s
        energies_mj = dict.fromkeys(WATTS)  # None for a counter that the chip has not
        for name, watts in self.watts.items():
            seconds = self.now_s if "gpu" in name else published_s
            energies_mj[name] = 7000 + int(watts * 1000 * seconds)
        return SimpleNamespace(**energies_mj)


@pytest.fixture
def make(passing, monkeypatch):
    """make(monitor): the meter over it, for 20 s."""

    def make(monitor):
        passing(monitor.tick, 20.0)
        monkeypatch.setattr(ioreport, "load_monitor", lambda: monitor)
        return IoReportMeter()

    return make


def test_counters_are_measured(make):
    meter = make(AppleEnergyMonitor())
    samples = measured(meter)
    seconds = span_s(samples)
    assert seconds == pytest.approx(20, abs=0.5)
    expected_j = {"CPU": 4 * seconds, "GPU": 20 * seconds, "ANE": 0, "DRAM": 3 * seconds}
    assert totals(samples) == pytest.approx(expected_j, rel=0.01)
    assert sum(s.beside["GPU SRAM"] for s in samples) == pytest.approx(0.5 * seconds, rel=0.01)
    assert meter.boundary == "CPU + GPU + ANE + DRAM of the SoC, without display, SSD and fans"
    assert meter.flags == ()
    meter = make(AppleEnergyMonitor({"cpu_total_mj": 4.0, "gpu_mj": 20.0}))
    assert meter.boundary == "CPU + GPU of the SoC, without DRAM, display, SSD and fans"


def test_batches_of_macos_27_are_flagged(make):
    meter = make(AppleEnergyMonitor(batch_s=2.2))
    assert totals(samples := measured(meter))["CPU"] == pytest.approx(4 * span_s(samples), rel=0.03)
    assert len(meter.flags) == 1 and "batches up to 2." in meter.flags[0]


def test_a_mac_without_counters_and_a_failing_library_are_reasons(make):
    meter = make(monitor := AppleEnergyMonitor({}))
    assert "no energy counter of the CPU" in meter.unavailable
    meter.start()
    assert meter.stop() == ()
    monitor.get_cumulative_energy = lambda: 1 / 0
    assert make(monitor).unavailable == "IOReport failed: division by zero"


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({}, None),
        ({"system": "Linux"}, "only on Macs with Apple silicon"),
        ({"vm": "1"}, "virtual machine"),  # where the package crashes
        ({"package": None}, " zeus-apple-silicon."),
        ({"chip": "Apple M2 Ultra"}, "1.1.0 counts only one of the two dies"),
        ({"chip": "Apple M3 Ultra", "version": "1.10"}, None),
    ],
)
def test_what_a_mac_needs(monkeypatch, answers, reason):
    package = ModuleType("zeus_apple_silicon")
    package.AppleEnergyMonitor = AppleEnergyMonitor
    said = {"system": "Darwin", "chip": "Apple M2 Max", "vm": "0", "version": "1.1.0"} | answers
    sysctl = {"kern.hv_vmm_present": said["vm"], "machdep.cpu.brand_string": said["chip"]}
    monkeypatch.setattr(ioreport.platform, "system", lambda: said["system"])
    monkeypatch.setattr(ioreport.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(ioreport, "output_of", lambda command: sysctl[command[-1]])
    versions = {ioreport.PACKAGE: said["version"]}
    monkeypatch.setattr(ioreport.metadata, "version", versions.__getitem__)
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", said.get("package", package))
    if reason is None:
        assert isinstance(ioreport.load_monitor(), AppleEnergyMonitor)
    else:
        monkeypatch.setattr(AppleEnergyMonitor, "__init__", lambda _: pytest.fail("it is used"))
        with pytest.raises(EdgeError, match=re.escape(reason)):
            ioreport.load_monitor()


@pytest.mark.skipif(sys.platform != "darwin", reason="the package is for Macs only")
def test_the_installed_package_has_every_rail():
    zeus = pytest.importorskip("zeus_apple_silicon", reason="zeus-apple-silicon is not installed")
    assert {*ioreport.RAILS.values(), *ioreport.BESIDE.values()} <= set(
        dir(zeus.AppleEnergyMetrics)
    )

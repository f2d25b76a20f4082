"""RAPL on a directory tree like the kernel's."""

import pytest

from edge.power import rapl
from edge.power.rapl import RaplMeter
from tests.device.conftest import write_files
from tests.power.conftest import measured, span_s, totals

# At 100 W the counter starts again three times in ten seconds.
RANGE_UJ, FIRST_UJ = 300_000_000, 299_000_000
SERVER = {
    "intel-rapl:0": ("package-0", 60.0),
    "intel-rapl:0:0": ("core", 45.0),
    "intel-rapl:0:1": ("dram", 7.0),
    "intel-rapl:1": ("package-1", 50.0),
    "intel-rapl:1:0": ("core", 35.0),
    "intel-rapl:1:1": ("dram", 5.0),
    "intel-rapl:2": ("psys", 180.0),
    "intel-rapl-mmio:0": ("package-0", 60.0),
}
SERVER_W = {"package-0": 60, "dram-0": 7, "package-1": 50, "dram-1": 5}
CLIENT = {zone: SERVER[zone] for zone in ("intel-rapl:0", "intel-rapl:0:0")}


@pytest.fixture
def machine(tmp_path, passing, monkeypatch):
    """machine(zones): a powercap tree of zones, each with its name and watts."""

    def make(zones):
        def tick(now_s):
            for zone, (_, watts) in zones.items():
                energy_uj = (FIRST_UJ + int(watts * now_s * 1e6)) % RANGE_UJ
                (tmp_path / zone / "energy_uj").write_text(f"{energy_uj}\n")

        for zone, (name, _) in zones.items():
            write_files(tmp_path / zone, {"name": name, "max_energy_range_uj": RANGE_UJ})
        (tmp_path / "intel-rapl").mkdir()  # the control type, which is not a zone
        tick(0)
        passing(tick)
        monkeypatch.setattr(rapl, "ROOT", tmp_path)

    return make


@pytest.mark.parametrize(
    ("zones", "watts", "beside", "dram"),
    [
        (SERVER, SERVER_W, {"core-0", "core-1", "psys"}, ""),
        (CLIENT, {"package-0": 60}, {"core-0"}, " and without DRAM"),
    ],
)
def test_packages_and_dram_are_added_once_across_wraps(machine, zones, watts, beside, dram):
    machine(zones)
    meter = RaplMeter()
    samples = measured(meter)
    expected_j = {rail: rail_w * span_s(samples) for rail, rail_w in watts.items()}
    assert totals(samples) == pytest.approx(expected_j, rel=1e-3)
    assert samples[0].beside.keys() == beside
    assert meter.boundary == f"{' + '.join(watts)} (RAPL), without GPU boards{dram}"
    assert meter.flags == ()


def forbid(path):
    raise PermissionError(13, "Permission denied", str(path))


@pytest.mark.parametrize(
    ("zones", "read_uj", "reason"),
    [
        ({}, None, "no RAPL package"),
        ({"intel-rapl:0": ("package-0", 0.0)}, None, "do not move"),  # of a virtual machine
        (SERVER, lambda path: int(""), "cannot be read"),
        # The kernel's answer to a user; tests that run as root would be allowed to read.
        (SERVER, forbid, "CVE-2020-8694"),
    ],
)
def test_reasons(machine, monkeypatch, zones, read_uj, reason):
    machine(zones)
    monkeypatch.setattr(rapl, "read_uj", read_uj or rapl.read_uj)
    meter = RaplMeter()
    assert reason in meter.unavailable
    meter.start()
    assert meter.stop() == ()

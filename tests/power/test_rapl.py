"""RAPL on a real directory tree, laid out as the kernel's."""

import pytest

from edge.power import rapl
from edge.power.rapl import RaplMeter
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


def machine(root, zones):
    """A powercap tree of zones with a name and watts each; the tick that moves its counters."""

    def tick(now_s):
        for zone, (_, watts) in zones.items():
            energy_uj = (FIRST_UJ + int(watts * now_s * 1e6)) % RANGE_UJ
            (root / zone / "energy_uj").write_text(f"{energy_uj}\n")

    for zone, (name, _) in zones.items():
        (root / zone).mkdir(parents=True)
        (root / zone / "name").write_text(f"{name}\n")
        (root / zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (root / "intel-rapl").mkdir()  # the control type, which is not a zone
    tick(0)
    return tick


CLIENT = {zone: SERVER[zone] for zone in ("intel-rapl:0", "intel-rapl:0:0")}


@pytest.mark.parametrize(
    ("zones", "watts", "beside", "without"),
    [
        (
            SERVER,
            {"package-0": 60, "dram-0": 7, "package-1": 50, "dram-1": 5},
            {"core-0", "core-1", "psys"},
            "GPU boards",
        ),
        (CLIENT, {"package-0": 60}, {"core-0"}, "GPU boards and without DRAM"),
    ],
)
def test_packages_and_dram_add_up_across_wraps_and_nothing_counts_twice(
    tmp_path, passing, zones, watts, beside, without
):
    passing(machine(tmp_path, zones))
    meter = RaplMeter(tmp_path)
    samples = measured(meter)
    expected_j = {rail: rail_w * span_s(samples) for rail, rail_w in watts.items()}
    assert totals(samples) == pytest.approx(expected_j, rel=1e-3)
    assert samples[0].beside.keys() == beside
    assert meter.boundary == f"{' + '.join(watts)} (RAPL), without {without}"
    assert meter.flags == ()


@pytest.mark.parametrize(
    ("zones", "written", "reason"),
    [
        ({}, None, "no RAPL package"),
        ({"intel-rapl:0": ("package-0", 0.0)}, None, "stand still"),  # of a virtual machine
        (SERVER, "", "cannot be read"),
    ],
)
def test_reasons(tmp_path, passing, zones, written, reason):
    passing(machine(tmp_path, zones))
    if written is not None:
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text(written)
    meter = RaplMeter(tmp_path)
    assert reason in meter.unavailable
    meter.start()
    assert meter.stop() == ()


def test_root_alone_may_read(tmp_path, monkeypatch):
    """The kernel's answer to `read`; the tests may run as root, to whom nothing is forbidden."""

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    machine(tmp_path, SERVER)
    monkeypatch.setattr(rapl, "read_uj", forbidden)
    reason = RaplMeter(tmp_path).unavailable
    assert "CVE-2020-8694" in reason
    assert f"sudo chgrp $(id -gn) {tmp_path}/intel-rapl:*/energy_uj && sudo chmod g+r" in reason

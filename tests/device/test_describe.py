from dataclasses import asdict

import pytest

from edge.device import describe


def test_this_machine_has_a_name_cores_and_memory():
    device = describe.describe_device()
    assert device.name
    assert 1 <= device.physical_cores <= device.logical_cores
    assert device.memory_bytes > 1e8


def test_nothing_names_the_owner():
    """Chip, sizes and system only: a new field must be thought about here."""
    assert set(asdict(describe.describe_device())) == {
        "name", "architecture", "physical_cores", "logical_cores", "memory_bytes", "os",
    }  # fmt: skip


def test_threads_keep_to_the_cores_that_are_allowed(monkeypatch):
    monkeypatch.setattr(describe.psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setattr(describe.os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert describe.usable_cores() == 2
    monkeypatch.delattr(describe.os, "sched_getaffinity")
    assert describe.usable_cores() == 8


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("Apple M2 Max", "Apple M2 Max"),
        ("Intel(R) Core(TM) i7-8750H CPU @ 2.20GHz", "Intel Core i7-8750H CPU @ 2.20GHz"),
    ],
)
def test_a_macs_chip_comes_from_sysctl(monkeypatch, tmp_path, raw, name):
    """The real call through an executable stand-in; its answers are as macOS gives them."""
    stand_in = tmp_path / "sysctl"
    answers = f"case $2 in machdep.cpu.brand_string) echo '{raw}';; kern.osversion) echo 26A428;;"
    stand_in.write_text(f"#!/bin/sh\n{answers} esac\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(describe.sys, "platform", "darwin")
    monkeypatch.setattr(describe.platform, "mac_ver", lambda: ("27.0", ("", "", ""), "arm64"))
    assert describe.chip_name() == name
    assert describe.operating_system() == "macOS 27.0 (26A428)"


def test_a_mac_without_sysctl_still_has_a_name(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(describe.sys, "platform", "darwin")
    assert describe.chip_name()

import getpass
import json
import platform
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from edge.device import bandwidth, describe
from edge.device.describe import Bandwidth, describe_device

M3_MAX = {
    ("sysctl", "-n", "machdep.cpu.brand_string"): "Apple M3 Max",
    ("sw_vers", "-productVersion"): "27.0",
    ("sysctl", "-n", "kern.osversion"): "26A428",
    ("sysctl", "-n", "hw.model"): "Mac15,8",
    "perflevels": (
        "hw.perflevel0.name: Performance\nhw.perflevel0.physicalcpu: 12\n"
        "hw.perflevel1.name: Efficiency\nhw.perflevel1.physicalcpu: 4"
    ),
    ("ioreg", "-rc", "AGXAccelerator"): (
        "+-o AGXAcceleratorG15X  <class AGXAcceleratorG15X, id 0x100000abc, registered>\n"
        '    {\n      "IOClass" = "AGXAcceleratorG15X"\n      "model" = "Apple M3 Max"\n'
        '      "gpu-core-count" = 40\n    }\n'
    ),
}


@pytest.fixture
def on_a_mac(monkeypatch):
    """A function that describes a Mac whose programs answer so."""
    monkeypatch.setattr(describe.sys, "platform", "darwin")
    # As a Python built with an older SDK has it.
    monkeypatch.setattr(describe.platform, "mac_ver", lambda: ("16.0", ("", "", ""), "arm64"))

    def described(answers, **options):
        def run(command):
            key = "perflevels" if command[1].startswith("hw.perflevel") else tuple(command)
            return answers.get(key, "")

        return describe_device(run=run, **options)

    return described


def test_nothing_names_the_owner():
    """Chip, sizes and system only: a new field must be thought about here."""
    device = asdict(describe_device(measure=False))
    assert device["name"] and 1 <= device["physical_cores"] <= device["logical_cores"]
    assert device["memory_bytes"] > 1e8 and "was not measured" in device["remarks"][0]
    assert set(device) == {
        "name", "architecture", "physical_cores", "logical_cores", "memory_bytes", "os",
        "hw_model", "cores_by_level", "gpu_name", "gpu_cores", "memory_bandwidth",
        "gpu_memory_bandwidth", "cache_bytes", "remarks",
    }  # fmt: skip
    said = json.dumps(device)
    assert str(Path.home()) not in said
    for name in (platform.node(), getpass.getuser()):
        assert f'"{name}"' not in said and f"/{name}" not in said


def test_a_large_mac(on_a_mac):
    device = on_a_mac(M3_MAX)
    assert (device.name, device.hw_model) == ("Apple M3 Max", "Mac15,8")
    assert device.os == "macOS 27.0 (26A428)"
    assert device.cores_by_level == {"Performance": 12, "Efficiency": 4}
    assert (device.gpu_name, device.gpu_cores) == ("Apple M3 Max", 40)
    assert device.memory_bandwidth == Bandwidth(409.6, "table, from memory")
    assert device.gpu_memory_bandwidth is None and device.cache_bytes == 100_000_000
    assert device.remarks == ()


def test_gpu_cores_from_the_system_report_where_the_registry_has_none(on_a_mac):
    silent = {**M3_MAX, ("ioreg", "-rc", "AGXAccelerator"): ""}
    report = "Graphics/Displays:\n\n    Apple M3 Max:\n\n      Total Number of Cores: 30\n"
    device = on_a_mac({**silent, ("system_profiler", "SPDisplaysDataType"): report})
    assert (device.gpu_cores, device.memory_bandwidth.gb_s) == (30, 307.2)
    ambiguous = on_a_mac(silent)
    assert ambiguous.memory_bandwidth is None
    assert "could not be found out: give it with --bandwidth-gb-s" in ambiguous.remarks[0]


def test_what_the_user_gives_goes_first(on_a_mac):
    assert on_a_mac(M3_MAX, bandwidth_gb_s=400.0).memory_bandwidth == Bandwidth(400.0, "given")
    assert describe_device(bandwidth_gb_s=12.5).memory_bandwidth == Bandwidth(12.5, "given")


@pytest.fixture
def measuring(monkeypatch):
    """measuring(gb_s): what the next measurement finds."""
    monkeypatch.setattr(describe, "chip_name", lambda run: "Intel Xeon Processor")

    def find(gb_s):
        found = bandwidth.Measured(1e9, gb_s * 1e9, 2, 402653184, 7, 4.0)
        monkeypatch.setattr(bandwidth, "measure_bandwidth", lambda threads: found)

    return find


@pytest.mark.parametrize(("load", "remarks"), [(0.3, 0), (6.5, 1)])
def test_a_bandwidth_measured_beside_other_programs_has_a_remark(
    monkeypatch, measuring, load, remarks
):
    measuring(15.6)
    monkeypatch.setattr(describe.os, "getloadavg", lambda: (load, 0.0, 0.0))
    device = describe_device()
    assert len(device.remarks) == remarks
    assert all("may be too low: close them" in remark for remark in device.remarks)
    source = "measured read, best of 7 passes, 2 threads, 384 MiB, 4.0 times the cache"
    assert device.memory_bandwidth == Bandwidth(15.6, f"{source}; triad 1.0 GB/s")


@pytest.mark.parametrize(
    ("source", "again_gb_s", "kept_gb_s"),
    [("measured read", 17.8, 17.8), ("measured read", 3.0, 5.4), ("given", 17.8, 5.4)],
)
def test_the_better_of_two_measurements_stays(measuring, source, again_gb_s, kept_gb_s):
    """Other programs only lower it, and a ceiling that is too low accuses a good engine."""
    measuring(again_gb_s)
    device = replace(describe_device(bandwidth_gb_s=1.0), memory_bandwidth=Bandwidth(5.4, source))
    assert describe.measured_again(device).memory_bandwidth.gb_s == kept_gb_s


def test_threads_keep_to_the_cores_that_are_allowed(monkeypatch):
    monkeypatch.setattr(describe.psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setattr(describe.os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert describe.usable_cores() == 2
    monkeypatch.delattr(describe.os, "sched_getaffinity")
    assert describe.usable_cores() == 8


@pytest.mark.parametrize(
    ("raw", "name"),
    [("Intel(R) Core(TM) i7 CPU @ 2.20GHz", "Intel Core i7 CPU @ 2.20GHz"), ("", "unknown CPU")],
)
def test_a_macs_chip_comes_from_sysctl(monkeypatch, raw, name):
    monkeypatch.setattr(describe.sys, "platform", "darwin")
    monkeypatch.setattr(describe.platform, "processor", lambda: "")
    assert describe.chip_name(lambda command: raw) == name

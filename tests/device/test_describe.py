import getpass
import json
import platform
from dataclasses import asdict
from pathlib import Path

import pytest

from edge.device import bandwidth, describe
from edge.device.describe import Bandwidth, Device, describe_device

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
    """on_a_mac(answers): this machine as a Mac whose programs print these answers."""
    monkeypatch.setattr(describe.sys, "platform", "darwin")

    def described(answers, **options):
        def output_of(command):
            key = "perflevels" if command[1].startswith("hw.perflevel") else tuple(command)
            return answers.get(key, "")

        monkeypatch.setattr(describe, "output_of", output_of)
        return describe_device(**options)

    return described


def test_no_field_identifies_the_owner():
    """A new field must be added here, after a thought about what it reveals."""
    device = asdict(describe_device(bandwidth_gb_s=12.5))
    assert device["name"] and 1 <= device["physical_cores"] <= device["logical_cores"]
    assert device["memory_bytes"] > 1e8
    assert device["memory_bandwidth"] == {"gb_s": 12.5, "source": "given"}
    assert set(device) == {
        "name", "architecture", "physical_cores", "logical_cores", "memory_bytes", "os",
        "hw_model", "cores_by_level", "gpu_name", "gpu_cores", "memory_bandwidth",
        "gpu_memory_bandwidth", "cache_bytes", "remarks",
    }  # fmt: skip
    said = json.dumps(device)
    assert str(Path.home()) not in said
    for name in (platform.node(), getpass.getuser()):
        assert f'"{name}"' not in said and f"/{name}" not in said


def test_a_mac_is_described(on_a_mac):
    device = on_a_mac(M3_MAX)
    assert (device.name, device.hw_model) == ("Apple M3 Max", "Mac15,8")
    assert device.os == "macOS 27.0 (26A428)"
    assert device.cores_by_level == {"Performance": 12, "Efficiency": 4}
    assert (device.gpu_name, device.gpu_cores) == ("Apple M3 Max", 40)
    assert device.memory_bandwidth == Bandwidth(409.6, "table, from memory")
    assert device.gpu_memory_bandwidth is None and device.cache_bytes == 100_000_000
    assert device.remarks == ()
    assert on_a_mac(M3_MAX, bandwidth_gb_s=400.0).memory_bandwidth == Bandwidth(400.0, "given")


@pytest.fixture
def measuring(monkeypatch):
    """measuring(gb_s): the result of the next measurement, on a machine that is not a Mac."""
    monkeypatch.setattr(describe, "_chip_name", lambda: "Intel Xeon Processor")

    def find(gb_s):
        found = gb_s * 1e9, "measured read"
        monkeypatch.setattr(bandwidth, "measure_bandwidth", lambda threads: found)

    return find


def test_a_bandwidth_measured_on_a_busy_machine_has_a_remark(monkeypatch, measuring):
    measuring(15.6)
    monkeypatch.setattr(describe, "allowed_load", lambda: 1.0)
    monkeypatch.setattr(describe.os, "getloadavg", lambda: (1.1, 0.0, 0.0))
    device = describe_device()
    assert "(load 1.1) and may be too low: close them" in device.remarks[0]
    assert device.memory_bandwidth == Bandwidth(15.6, "measured read")


@pytest.mark.parametrize(
    ("source", "again_gb_s", "kept_gb_s"),
    [("measured read", 17.8, 17.8), ("measured read", 3.0, 5.4), ("given", 17.8, 5.4)],
)
def test_the_higher_of_two_measurements_is_kept(measuring, source, again_gb_s, kept_gb_s):
    measuring(again_gb_s)
    device = Device("PC", memory_bandwidth=Bandwidth(5.4, source))
    assert describe.measured_again(device).memory_bandwidth.gb_s == kept_gb_s

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from edge.cli import doctor
from edge.cli.doctor import Engine, Power
from edge.cli.main import parser_of
from edge.device.describe import Bandwidth, Device
from edge.device.software import software_versions
from edge.device.state import State
from edge.power.selftest import MeterTest, RailTest

MAC = Device(
    name="Apple M2 Max",
    memory_bytes=68_719_476_736,
    cores_by_level={"Performance": 8, "Efficiency": 4},
    memory_bandwidth=Bandwidth(409.6, "table"),
    cache_bytes=100_000_000,
)
QUIET = State("mains", 100, False, None, "nominal", None, 0.5, "normal", None)
READY = doctor.Findings(
    device=MAC,
    state=QUIET,
    power=[Power("powermetrics", "CPU + GPU + ANE", None), Power("nvml", "GPU", "no driver")],
    engines=[Engine("mlx", "0.32.4", None), Engine("llama-cpp-python", "0.3.36", None)],
    disk_free_bytes=200_000_000_000,
    memory_available_bytes=50_000_000_000,
    missing=[],
)


def run(*words):
    return doctor.run(parser_of("doctor").parse_args(words))


@pytest.fixture
def printed(monkeypatch, capsys):
    """printed(words, changes): exit code and lines for READY with changes."""

    def print_them(*words, **changes):
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(doctor, "examine", lambda bandwidth_gb_s: replace(READY, **changes))
        return run(*words), capsys.readouterr().out.splitlines()

    return print_them


def test_this_machine_as_json(capsys):
    assert run("-o", "json", "--bandwidth-gb-s", "20") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["can_measure"] is True
    assert found["device"]["memory_bandwidth"] == {"gb_s": 20.0, "source": "given"}
    assert [p["source"] for p in found["power"]] == ["nvml", "rapl"]
    assert found["engines"][0]["name"] == "mlx" and found["engines"][0]["problem"] is None
    assert found["disk_free_bytes"] > 0 and found["state"]["load_1m"] >= 0


def test_report_and_verdict_with_and_without_an_engine_or_a_power_source(printed):
    code, lines = printed()
    assert code == 0 and set(lines) > {
        "    memory bandwidth     409.6 GB/s (table)",
        "  ✓ powermetrics         CPU + GPU + ANE",
        "  ✗ nvml                 no driver",
        "Speed, memory and power can be measured here (power with powermetrics).",
    }
    broken = [Engine("mlx", None, "not installed"), Engine("mlx-lm", "0.31.3", None)]
    code, lines = printed(engines=broken)
    assert (code, lines[-1]) == (1, "Nothing can be measured here: no engine works.")
    code, lines = printed(power=[Power("rapl", "CPU", "no zone")])
    assert (code, lines[-1]) == (0, "Speed and memory can be measured here, power cannot.")


def test_a_mac_owner_learns_what_to_type(printed):
    _, lines = printed(device=replace(MAC, os="macOS 26.1 (25B78)"))
    begin = lines.index("To measure Table 11 on this Mac, on mains power and with all else closed")
    steps = [line.split("   (")[0] for line in lines[begin + 1 :] if line.startswith("  - ")]
    first = ["edge convert", "sudo -v", "edge report", "publish the"]
    assert [" ".join(step.split()[1:3]) for step in steps] == first
    assert sum(" min" in line for line in lines[begin:]) == 2


def test_a_foreign_llama_cpp_is_named(monkeypatch, tmp_path):
    own = Path(find_spec("llama_cpp").origin).parent / "lib"
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(own))
    (library,) = (*own.glob("libllama.so"), *own.glob("libllama.dylib"))
    assert software_versions()["llama.cpp"] == f"{library.resolve().name} of LLAMA_CPP_LIB_PATH"
    assert doctor._engine("llama-cpp-python").note.endswith(f" in {own}")
    keg = tmp_path / "Cellar" / "llama.cpp" / "6500" / "lib"
    keg.mkdir(parents=True)
    (keg / library.name).touch()
    (tmp_path / library.name).symlink_to(keg / library.name)
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    assert software_versions()["llama.cpp"] == f"{library.name} of Homebrew 6500"
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH")
    assert "llama.cpp" not in software_versions()
    monkeypatch.setattr(doctor, "HOMEBREW_LIB", tmp_path)
    (tmp_path / "libllama.dylib").touch()
    assert f"export LLAMA_CPP_LIB_PATH={tmp_path}" in doctor._engine("llama-cpp-python").note


def test_missing_parts_are_named(monkeypatch):
    on_battery, device = replace(QUIET, power_source="battery"), replace(MAC, remarks=("no GB/s",))
    monkeypatch.setattr(doctor, "read_state", lambda: on_battery)
    monkeypatch.setattr(doctor, "describe_device", lambda gb_s: device)
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    monkeypatch.setattr(doctor, "TABLE_11_DISK_BYTES", 1e18)
    monkeypatch.setitem(doctor.ENGINES, "mlx-lm", "edge.no_such_module")
    found = doctor.examine()
    assert [power.source for power in found.power] == ["powermetrics", "ioreport"]
    missing = "\n".join(found.missing)
    parts = ("mlx-lm: its files are missing", "power: no source", "no GB/s", "plug it in", "disk")
    assert [part for part in parts if part not in missing] == []


def test_wheel_without_the_chips_kernels_is_named(monkeypatch):
    def problems(chip, tag):
        monkeypatch.setattr(doctor, "mlx_metal_tag", lambda: tag)
        return list(doctor._wrong_wheel(replace(MAC, name=chip)))

    (problem,) = problems("Apple M5 Pro", "macosx_14_0_arm64")
    assert problem.startswith("mlx: the wheel for macosx_14_0_arm64 lacks the matrix kernels")
    assert problems("Apple M5", "macosx_26_0_arm64") == problems("AMD EPYC", None) == []
    assert problems("Apple M4 Max", "macosx_14_0_arm64") == []


@pytest.mark.parametrize(
    ("problem", "code", "line"),
    [
        (None, 0, "  ✓ powermetrics CPU     0.400 W idle, 18.2 W under load, 0.500 W after it"),
        ("it does not move under load", 1, "  ✗ powermetrics CPU     it does not move under load"),
    ],
)
def test_meters_are_tested_on_what_can_be_loaded(monkeypatch, printed, capsys, problem, code, line):
    asked = []

    def self_test(meter, rails, load):
        asked.append((meter, rails))
        return MeterTest(meter, [RailTest("CPU", 0.4, 18.2, 0.5, problem)], ["a flag"])

    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    monkeypatch.setattr(doctor, "self_test", self_test)
    monkeypatch.setattr(doctor, "choose_meter", lambda source: source)
    power = [Power("powermetrics", "CPU + GPU + ANE", None), Power("ioreport", "CPU", "missing")]
    found, lines = printed("--meter", power=power)
    assert (found, asked) == (code, [("powermetrics", ["CPU", "GPU"])])
    assert any(text.startswith(line) for text in lines) and "  - a flag" in lines
    on_cpu = [Engine("mlx", "0.32.4", None, "with its own BLAS")]
    printed("--meter", engines=on_cpu, power=power)
    assert asked[1:] == [("powermetrics", ["CPU"])]
    code, lines = printed("--meter", power=[])
    assert code == 1 and "no meter that works here" in lines[-1]

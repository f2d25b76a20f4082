import json
from dataclasses import replace

import pytest

from edge.cli import doctor
from edge.cli.doctor import Engine, Power
from edge.cli.main import parser_of
from edge.device.describe import Bandwidth, Device
from edge.device.state import State

MAC = Device(
    name="Apple M2 Max",
    architecture="arm64",
    physical_cores=12,
    logical_cores=12,
    memory_bytes=68_719_476_736,
    os="macOS 27.0 (26A428)",
    hw_model="Mac14,6",
    cores_by_level={"Performance": 8, "Efficiency": 4},
    gpu_name="Apple M2 Max",
    gpu_cores=38,
    memory_bandwidth=Bandwidth(409.6, "table"),
)
QUIET = State("mains", 100, False, None, "nominal", None, 0.5, "normal", None)
GOOD = [Engine("mlx", "0.32.4", None), Engine("llama-cpp-python", "0.3.36", None)]
READY = doctor.Findings(
    device=MAC,
    state=QUIET,
    power=[Power("powermetrics", "CPU + GPU + ANE", None), Power("nvml", None, "no driver")],
    engines=GOOD,
    disk_free_bytes=200_000_000_000,
    memory_available_bytes=50_000_000_000,
    missing=[],
)


def run(*words):
    return doctor.run(parser_of("doctor").parse_args(words))


def printed(findings, monkeypatch, capsys, *words):
    monkeypatch.setattr(doctor, "examine", lambda bandwidth_gb_s: findings)
    return run(*words), capsys.readouterr().out


def test_this_machine_as_json(capsys):
    assert run("-o", "json", "--bandwidth-gb-s", "20") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["can_measure"] is True
    assert found["device"]["memory_bandwidth"] == {"gb_s": 20.0, "source": "given"}
    assert [p["source"] for p in found["power"]] == ["nvml", "rapl"]  # what Linux can have
    engines = {engine["name"]: engine for engine in found["engines"]}
    assert engines["mlx"]["version"] and engines["mlx"]["problem"] is None
    assert found["disk_free_bytes"] > 0 and found["state"]["load_1m"] >= 0


def test_every_missing_power_source_has_its_reason():
    for power in doctor.power_sources():
        assert power.reason is None or len(power.reason) > 20
        assert power.boundary


def test_a_ready_mac(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    code, text = printed(READY, monkeypatch, capsys)
    assert code == 0
    lines = text.splitlines()
    assert (
        "    chip             Apple M2 Max, Mac14,6, 12 cores (8 Performance, 4 Efficiency), arm64"
        in lines
    )
    assert "    bandwidth        409.6 GB/s (table)" in lines
    assert "    GPU              Apple M2 Max, 38 cores" in lines
    assert "    power            mains, battery at 100 %" in lines
    assert "  ✓ powermetrics     CPU + GPU + ANE" in lines
    assert "  ✗ nvml             no driver" in lines
    assert "Nothing is missing" in lines
    assert lines[-1].endswith("(power through powermetrics).")


def test_long_lines_break_under_their_column(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    reason = "the counters are for root alone; " * 5
    findings = replace(READY, power=[Power("rapl", None, reason)], missing=["close " * 30])
    _, text = printed(findings, monkeypatch, capsys)
    assert all(len(line) <= 60 for line in text.splitlines())
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if "✗ rapl" in line)
    assert lines[first + 1][:21].isspace() and not lines[first + 1][21].isspace()
    bullet = next(i for i, line in enumerate(lines) if line.startswith("  - close"))
    assert lines[bullet + 1].startswith("    close")


def test_without_an_engine_nothing_can_be_measured(monkeypatch, capsys):
    broken = [
        Engine("mlx", None, "not installed: type pip install mlx"),
        Engine("mlx-lm", "0.31.3", None),
    ]
    code, text = printed(replace(READY, engines=broken), monkeypatch, capsys)
    assert code == 1
    assert "no engine works" in text
    code, text = printed(replace(READY, engines=broken), monkeypatch, capsys, "-o", "json")
    assert code == 1 and json.loads(text)["can_measure"] is False


def test_without_power_speed_is_left(monkeypatch, capsys):
    findings = replace(READY, power=[Power("rapl", None, "no zone")])
    code, text = printed(findings, monkeypatch, capsys)
    assert code == 0
    assert text.splitlines()[-1] == "Speed and memory can be measured here, power cannot."


@pytest.mark.parametrize(
    ("reason", "told"), [("it wants a password", 1), ("SUDOERS", 0), (None, 0)]
)
def test_a_mac_is_told_the_sudoers_line_once(monkeypatch, reason, told):
    from edge.power.powermetrics import SUDOERS

    reason = SUDOERS if reason == "SUDOERS" else reason
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    findings = replace(READY, power=[Power("powermetrics", None, reason)])
    hints = [line for line in doctor._report(findings) if line.startswith("    powermetrics")]
    assert len(hints) == told
    assert all("NOPASSWD: /usr/bin/powermetrics" in hint for hint in hints)


def test_what_is_missing_is_told_with_what_to_do(monkeypatch):
    monkeypatch.setattr(
        "edge.cli.doctor.read_state", lambda: replace(QUIET, power_source="battery")
    )
    monkeypatch.setattr(
        "edge.cli.doctor.describe_device", lambda gb_s: replace(MAC, remarks=("no bandwidth",))
    )
    monkeypatch.setattr(doctor, "power_sources", lambda: [Power("rapl", None, "no zone")])
    monkeypatch.setattr(doctor, "TABLE_11_DISK_BYTES", 1e18)
    monkeypatch.setitem(doctor.ENGINES, "mlx-lm", "edge.no_such_module")
    missing = "\n".join(doctor.examine().missing)
    for words in ("mlx-lm: does not load", "no power source works", "no bandwidth", "plug it in"):
        assert words in missing
    assert "disk space: " in missing


@pytest.mark.parametrize("text", ["0", "-3", "fast", "nan", "inf"])
def test_a_bandwidth_that_is_none(text, capsys):
    with pytest.raises(SystemExit):
        run("--bandwidth-gb-s", text)
    assert "is not a number of GB/s" in capsys.readouterr().err


def test_a_mac_hears_of_the_sources_that_macs_have(monkeypatch):
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    monkeypatch.setenv("PATH", "/nowhere")
    sources = doctor.power_sources()
    assert [power.source for power in sources] == ["powermetrics", "ioreport"]
    assert "modprobe" not in " ".join(power.reason or "" for power in sources)


@pytest.mark.parametrize(
    ("chip", "tag", "warned"),
    [
        ("Apple M5 Pro", "macosx_14_0_arm64", True),
        ("Apple M5", "macosx_26_0_arm64", False),
        ("Apple M4 Max", "macosx_14_0_arm64", False),
        ("AMD EPYC", None, False),
    ],
)
def test_a_wheel_without_the_chips_kernels_is_warned_of(chip, tag, warned, monkeypatch):
    monkeypatch.setattr("edge.cli.doctor.mlx_metal_tag", lambda: tag)
    found = doctor._wrong_wheel(replace(MAC, name=chip))
    assert len(found) == warned
    if warned:
        assert "macosx_14_0_arm64 lacks the matrix kernels of Apple M5 Pro" in found[0]
        assert found[0].endswith(" --force-reinstall mlx-metal")

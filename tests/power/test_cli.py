import json
import os
import sys
import time
from types import SimpleNamespace

import pytest

from edge.cli import power
from edge.cli.main import parser_of
from edge.errors import EdgeError
from tests.support.fake_powermetrics import install, record, stream

KEYS = {
    "source",
    "boundary",
    "duration_s",
    "energy_j",
    "mean_power_w",
    "records",
    "coverage",
    "thermal_worst",
    "flags",
}


def edge_power(*argv):
    return power.run(parser_of("power").parse_args(argv))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """powermetrics and sudo first on the PATH, at 20 ms."""
    install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("edge.power.powermetrics.DEFAULT_INTERVAL_MS", 20)
    return lambda misdeeds: monkeypatch.setenv("FAKE_POWERMETRICS", misdeeds)


def python(code):
    return ["--", sys.executable, "-S", "-c", code]


def test_a_recorded_log(tmp_path, capsys):
    path = tmp_path / "log.plist"
    path.write_bytes(stream(record(n, thermal="Heavy") for n in range(4)))
    assert edge_power("--replay", str(path), "-o", "json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() >= KEYS
    assert printed["source"] == "replay:log.plist"
    assert printed["energy_j"] == {"CPU": 10.0, "GPU": 40.0, "ANE": 0.0, "total": 50.0}
    assert (printed["duration_s"], printed["mean_power_w"]) == (2.0, 25.0)
    assert (printed["records"], printed["coverage"]) == (4, 1.0)
    assert printed["thermal_worst"] == "heavy"
    assert any("heavy" in flag for flag in printed["flags"])
    assert str(tmp_path) not in json.dumps(printed)


def test_a_stalled_counter_gives_no_total(tmp_path, capsys):
    path = tmp_path / "log.plist"
    path.write_bytes(stream(record(n, cpu_mj=0) for n in range(12)))
    edge_power("--replay", str(path), "-o", "json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["energy_j"] == {"GPU": 120.0, "total": None}
    assert printed["mean_power_w"] is None
    edge_power("--replay", str(path))
    text = capsys.readouterr().out
    assert "CPU counter stalled" in text
    assert " W" not in text


def test_a_command_keeps_its_output_and_its_exit_code(stand_in, capfd):
    stand_in("")
    code = edge_power("--source", "powermetrics", *python("print('hello'); raise SystemExit(7)"))
    out, err = capfd.readouterr()
    assert code == 7
    assert out == "hello\n"
    assert "CPU" in err
    assert "powermetrics stand-in:" in err
    assert "warning: powermetrics is a stand-in here" in err


def test_with_json_stdout_holds_the_document_alone(stand_in, capfd):
    stand_in("")
    code = edge_power("--source", "powermetrics", "-o", "json", *python("print('hello')"))
    out, err = capfd.readouterr()
    printed = json.loads(out)
    assert (code, err) == (0, "hello\n")
    assert printed["source"] == "powermetrics stand-in"
    assert printed["energy_j"]["total"] > 0
    assert printed["coverage"] == 1.0


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (python("import os; os.kill(os.getpid(), 9)"), 137),
        (["--", "no-such-command-anywhere"], 127),
        (["--", "/"], 126),
    ],
)
def test_how_a_command_fails_is_told_as_shells_do(stand_in, argv, code, capfd):
    stand_in("")
    assert edge_power("--source", "powermetrics", *argv) == code


def test_ctrl_c_is_the_commands_and_what_was_measured_is_printed(stand_in, capfd):
    stand_in("")
    interrupts = "import os, signal; os.kill(os.getppid(), signal.SIGINT); raise SystemExit(3)"
    assert edge_power("--source", "powermetrics", "-o", "json", *python(interrupts)) == 3
    assert json.loads(capfd.readouterr().out)["records"] > 0


def test_a_stretch_of_time_cut_short_prints_what_was_measured(stand_in, capsys, monkeypatch):
    stand_in("")

    def interrupted(seconds):
        raise KeyboardInterrupt

    clock = {"monotonic": time.monotonic, "monotonic_ns": time.monotonic_ns}
    monkeypatch.setattr(power, "time", SimpleNamespace(sleep=interrupted, **clock))
    argv = ("--source", "powermetrics", "-o", "json")
    assert edge_power(*argv, "--seconds", "60") == 130
    assert json.loads(capsys.readouterr().out)["duration_s"] < 60
    assert edge_power(*argv) == 0  # without an end, Ctrl-C is the end


def test_without_a_meter_nothing_runs(stand_in, tmp_path):
    stand_in("needs-root")
    touched = tmp_path / "touched"
    with pytest.raises(EdgeError, match="NOPASSWD"):
        edge_power("--source", "powermetrics", "--", "touch", str(touched))
    assert not touched.exists()


def test_a_meter_that_dies_is_no_success(stand_in, capsys):
    stand_in("dies")
    assert edge_power("--source", "powermetrics", "--seconds", "0.5", "-o", "json") == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["coverage"] < 1
    assert any("incomplete" in flag for flag in printed["flags"])


@pytest.mark.parametrize("argv", [["--seconds", "0"], ["--seconds", "nan"], ["--source", "x"]])
def test_wrong_arguments_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        edge_power(*argv)
    assert exit_.value.code == 2


def test_a_command_and_a_time_are_too_much():
    with pytest.raises(EdgeError, match="stands alone"):
        edge_power("--seconds", "3", "--", "true")

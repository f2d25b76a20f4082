import json
import sys
import time
from types import SimpleNamespace

import pytest

from edge.cli import power
from edge.cli.main import parser_of
from edge.cli.options.power import check
from edge.errors import EdgeError
from edge.power.choose import NoMeter
from tests.support.fake_powermetrics import record, stream

KEYS = (
    "source boundary duration_s energy_j beside_j edge_error_j power_w records coverage "
    "thermal_worst warnings"
)


def edge_power(*argv):
    args = parser_of("power").parse_args(argv)
    check(args)
    return power.run(args)


def measure(*argv):
    return edge_power("--source", "powermetrics", *argv)


def python(code):
    return ["--", sys.executable, "-S", "-c", code]


@pytest.fixture
def replay(tmp_path, capsys):
    """replay(records): the document and the text for a log of them."""

    def run(records):
        path = tmp_path / "log.plist"
        path.write_bytes(stream(records))
        assert edge_power("--replay", str(path), "-o", "json") == 0
        document = capsys.readouterr().out
        assert str(tmp_path) not in document
        assert edge_power("--replay", str(path)) == 0
        return json.loads(document), capsys.readouterr().out

    return run


def test_without_a_meter_a_command_is_not_run(monkeypatch):
    monkeypatch.setattr(power, "choose_meter", lambda source: NoMeter("x"))
    with pytest.raises(EdgeError, match=r"^touch was not run: no power meter .*`edge doctor`"):
        edge_power("--", "touch")


def test_a_recorded_log_is_replayed(replay):
    printed, _ = replay(record(n, thermal="Heavy") for n in range(4))
    assert list(printed) == KEYS.split()
    assert printed["source"] == "replay:log.plist"
    assert printed["energy_j"] == {"CPU": 10.0, "GPU": 40.0, "ANE": 0.0, "total": 50.0}
    assert (printed["duration_s"], printed["power_w"]) == (2.0, 25.0)
    assert (printed["records"], printed["coverage"]) == (4, 1.0)
    (flag,) = printed["warnings"]
    assert printed["thermal_worst"] == "heavy" and "heavy" in flag


def test_a_stalled_counter_gives_no_total(replay):
    printed, text = replay(record(n, cpu_mj=0 if n else 3000) for n in range(12))
    assert printed["energy_j"] == {"GPU": 120.0, "total": None}
    assert printed["beside_j"] == {"CPU": 3.0, "ANE": 0.0}
    assert printed["boundary"] == "GPU of the SoC only: not a total"
    assert printed["power_w"] is None
    assert "CPU counter stalled" in text and " W" not in text


def test_json_is_alone_on_stdout_and_ctrl_c_is_left_to_the_command(fake, capfd):
    interrupts = "import os, signal; os.kill(os.getppid(), signal.SIGINT); "
    code = f"{interrupts}print('hello'); raise SystemExit(3)"
    assert measure("-o", "json", *python(code)) == 3
    out, err = capfd.readouterr()
    printed = json.loads(out)
    assert (err, printed["source"]) == ("hello\n", "powermetrics")
    assert printed["energy_j"]["total"] > 0 and printed["coverage"] == 1.0


@pytest.mark.parametrize(
    ("argv", "code", "output"),
    [
        (python("print('hello'); raise SystemExit(7)"), 7, "hello\n"),
        (python("import os; os.kill(os.getpid(), 9)"), 137, ""),
        (["--", "no-such-command-anywhere"], 127, ""),
        (["--", "/"], 126, ""),
    ],
)
def test_a_command_keeps_its_output_and_its_exit_code(fake, capfd, argv, code, output):
    assert measure(*argv) == code
    out, err = capfd.readouterr()
    assert out == output
    assert "CPU" in err and "powermetrics: CPU + GPU" in err


def test_ctrl_c_ends_a_measurement_of_time(fake, capsys, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    clock = {"monotonic": time.monotonic, "monotonic_ns": time.monotonic_ns}
    monkeypatch.setattr(power, "time", SimpleNamespace(sleep=interrupted, **clock))
    assert measure("-o", "json", "--seconds", "60") == 130
    assert json.loads(capsys.readouterr().out)["duration_s"] < 60
    assert measure("-o", "json") == 0


def test_a_command_without_a_meter_or_with_another_task_is_not_run(fake, tmp_path):
    fake("empty")
    with pytest.raises(EdgeError, match="ended with code 0"):
        measure("--", "touch", str(tmp_path / "touched"))
    with pytest.raises(EdgeError, match="does not go with"):
        measure("--seconds", "3", "--", "touch", str(tmp_path / "touched"))
    assert not (tmp_path / "touched").exists()


def test_a_meter_that_dies_is_a_failure(fake, capsys):
    fake("dies")
    assert measure("--seconds", "0.5", "-o", "json") == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["coverage"] < 1 and any("incomplete" in flag for flag in printed["warnings"])

"""The meter over a fake powermetrics, which streams at real cadence and misbehaves on demand."""

import re
import time
from itertools import pairwise
from types import SimpleNamespace

import psutil
import pytest

import edge.power.powermetrics as module
from edge.device.system import output_of
from edge.power.meter import integrate
from edge.power.powermetrics import PowermetricsMeter
from tests.support.fake_powermetrics import CPU_W, GPU_W, install


@pytest.fixture
def make(fake, tmp_path, monkeypatch):
    """make(misdeeds): a meter over the fake, whose records are in `make.log`."""

    def make(misdeeds=""):
        fake(misdeeds)
        meter = PowermetricsMeter()
        monkeypatch.setenv("FAKE_POWERMETRICS_LOG", str(make.log))  # without the probe's record
        return meter

    make.log = tmp_path / "log"
    return make


def measure(meter, records=6):
    """Samples of a run that lasts until so many records came."""
    meter.start()
    if (process := meter._process) is not None:
        process.wait_for(lambda: len(process.records) >= records, 10)
    return meter.stop()


@pytest.mark.parametrize("oddities", ["", "late,ultra,by-line,clock-step", "batched", "nan"])
def test_every_record_counts_once(make, oddities):
    meter = make(oddities)
    samples = measure(meter, 8)
    streamed = make.log.read_text()
    rejected = int(oddities == "nan")  # a record that is missing is not of 0 W
    assert meter.unavailable is None and len(meter.flags) == rejected
    assert all("cpu_energy is not of 0 to 1000 W" in flag for flag in meter.flags)
    if oddities == "batched":
        assert len(samples) >= 2
    else:
        assert len(samples) == streamed.count("<?xml ") - rejected
    energies_mj = re.findall(r"cpu_energy</key>\s*<integer>(\d+)", streamed)
    assert sum(s.joules["CPU"] for s in samples) == pytest.approx(sum(map(int, energies_mj)) / 1000)
    assert all(a.end_ns <= b.begin_ns for a, b in pairwise(samples))
    assert all(s.mean_w == pytest.approx(CPU_W + GPU_W, rel=0.05) for s in samples)
    assert samples[-1].thermal == "nominal"


def test_sampling_reaches_past_the_end_and_starts_afresh(make):
    meter = make()
    meter.start()
    asked_ns = time.monotonic_ns()
    first = meter.stop()
    assert first[-1].end_ns >= asked_ns
    assert integrate(first, asked_ns - 10**6, asked_ns).coverage == 1.0
    assert measure(meter, 3)[0].begin_ns >= first[-1].end_ns
    assert meter.flags == ()


def test_records_are_read_while_it_runs_and_old_ones_are_forgotten(make, monkeypatch):
    monkeypatch.setattr(module, "BEFORE_NS", 0)
    meter = make()
    assert meter.read(0) == ()
    meter.start()
    process = meter._process
    assert process.wait_for(lambda: len(process.records) >= 6, 10)
    third_ns = process.arrivals_ns[2]
    samples = meter.read(0)
    assert len(samples) >= 6
    assert all(s.mean_w == pytest.approx(CPU_W + GPU_W, rel=0.05) for s in samples)
    assert meter.read(third_ns)[0].joules == samples[3].joules
    assert process.arrivals_ns[0] > third_ns
    meter.stop()


@pytest.mark.parametrize(
    ("misdeed", "words"), [("dies", "ended with code 1"), ("hangs", "gave no record for 0.")]
)
def test_a_failure_during_a_run_keeps_the_complete_records(make, monkeypatch, misdeed, words):
    monkeypatch.setattr(module, "REACH_S", 0.2)
    meter = make(misdeed)
    meter.start()
    process = meter._process
    family = psutil.Process(process._child.pid).children(recursive=True)
    process.wait_for(lambda: len(process.records) >= 4, 10)
    if misdeed == "dies":
        process.wait_for(lambda: False, 10)
    assert len(meter.stop()) == 4
    assert f"not measured to the end: powermetrics {words}" in meter.unavailable
    assert any("incomplete" in flag for flag in meter.flags)
    assert not any(child.is_running() for child in family)


def test_a_child_of_root_is_ended_by_closing_its_pipe(make, monkeypatch):
    sent = []

    def refuse(pid, number):
        sent.append(pid)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module, "STOP_S", 0.3)
    assert len(measure(make("deaf"), 3)) >= 3  # one that ignores SIGTERM
    meter = make()
    meter.start()
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "kill", refuse)
        assert len(meter.stop()) >= 1
    assert sent and not any(psutil.pid_exists(pid) for pid in sent)


@pytest.mark.parametrize("moment", ["start", "stop"])
def test_ctrl_c_ends_the_process(make, monkeypatch, moment):
    children, meter = [], make("late" if moment == "start" else "")
    if moment == "stop":
        meter.start()

    def interrupted(process, done, timeout_s):
        child = psutil.Process(process._child.pid)
        children.extend([child, *child.children(recursive=True)])
        raise KeyboardInterrupt

    monkeypatch.setattr(module.PowermetricsProcess, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(meter, moment)()
    psutil.wait_procs(children, timeout=5)
    assert children and not any(child.is_running() for child in children)


@pytest.mark.parametrize(
    ("misdeed", "words"),
    [
        ("needs-root", "YOUR_NAME ALL=(root) NOPASSWD: /usr/bin/powermetrics"),
        ("empty", "ended with code 0"),
        ("gpu-only", "no cpu_energy"),
        ("late", "no record within 0.1 s"),
        ("missing", "cannot be started"),
        ("unknown", "not found"),
    ],
)
def test_reasons(make, monkeypatch, tmp_path, misdeed, words):
    monkeypatch.setattr(module, "READY_S", 0.1 if misdeed == "late" else 15.0)
    commands = {"missing": (str(tmp_path / "missing"),), "unknown": ()}
    command = commands.get(misdeed, module.find_command())
    monkeypatch.setattr(module, "find_command", lambda: command)
    meter = make(misdeed)
    assert words in meter.unavailable
    assert list(measure(meter)) == []


def test_another_powermetrics_is_flagged(fake, monkeypatch):
    running = [SimpleNamespace(info={"name": "powermetrics"})]
    monkeypatch.setattr(module.psutil, "process_iter", lambda _: running)
    meter = PowermetricsMeter()
    measure(meter, 2)
    (flag,) = meter.flags
    assert "another powermetrics" in flag


def test_programs_are_not_taken_from_the_path(tmp_path, monkeypatch):
    install(tmp_path)
    (tmp_path / "sysctl").write_text("#!/bin/sh\necho taken")
    (tmp_path / "sysctl").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f".:{tmp_path}")
    monkeypatch.setattr(module.platform, "system", lambda: "Darwin")
    assert str(tmp_path) not in " ".join(module.find_command())
    assert output_of(("sysctl", "-n", "hw.model")) != "taken"


def test_an_expired_sudo_ticket_is_noticed_and_probed_again(make, monkeypatch):
    """It lasts five minutes, so a probe before a download proves nothing."""
    waiting = make()
    monkeypatch.setenv("FAKE_SUDO", "password")
    assert make().unavailable is None and not make.log.exists()  # not probed a second time
    waiting.start()
    assert "sudo wants a password" in waiting.unavailable and "sudo -v" in waiting.unavailable
    assert waiting.stop() == ()
    assert "sudo wants a password" in make().unavailable
    monkeypatch.delenv("FAKE_SUDO")
    assert make().unavailable is None
    monkeypatch.setenv("FAKE_SUDO", "password")
    module.forget_probes()
    assert "sudo wants a password" in make().unavailable

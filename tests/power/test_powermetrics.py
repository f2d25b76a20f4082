"""The meter against the stand-in, which streams at real cadence and misbehaves on demand."""

import re
import time
from itertools import pairwise
from types import SimpleNamespace

import psutil
import pytest

import edge.power.powermetrics as module
from edge.power.meter import integrate
from edge.power.powermetrics import PowermetricsMeter, find_command
from tests.support.fake_powermetrics import CPU_W, GPU_W, install

INTERVAL_MS = 20


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """stand_in(misdeeds) -> a meter that takes it for Apple's; it streams to `stand_in.log` too."""
    command = install(tmp_path / "bin")
    monkeypatch.setattr(module, "is_apples", lambda _: True)

    def make(misdeeds="", command=command):
        monkeypatch.setenv("FAKE_POWERMETRICS", misdeeds)
        return PowermetricsMeter(INTERVAL_MS, command)

    make.log = tmp_path / "log"
    make.record_log = lambda: monkeypatch.setenv("FAKE_POWERMETRICS_LOG", str(make.log))
    return make


def measure(meter, records=6):
    """Samples of a run that lasts until so many records came."""
    meter.start()
    if (process := meter._process) is not None:
        process.wait_for(lambda: len(process.records) >= records, 10)
    return meter.stop()


def streamed_cpu_mj(log):
    """Energy that the stand-in claims, found without the parser."""
    return sum(int(mj) for mj in re.findall(r"cpu_energy</key>\s*<integer>(\d+)", log.read_text()))


def cpu_mj(samples):
    return pytest.approx(1000 * sum(s.joules["CPU"] for s in samples))


@pytest.mark.parametrize(
    ("oddities", "batch", "tolerance"),
    [("", 1, 0.05), ("late,ultra,by-line,clock-step", 1, 0.05), ("batched", 4, 0.3)],
)
def test_every_record_counts_once(stand_in, oddities, batch, tolerance):
    meter = stand_in(oddities)
    stand_in.record_log()
    samples = measure(meter, 8)
    assert (meter.unavailable, meter.flags) == (None, ())
    assert len(samples) >= 8 // batch
    if batch == 1:
        assert len(samples) == stand_in.log.read_bytes().count(b"<?xml ")
    assert streamed_cpu_mj(stand_in.log) == cpu_mj(samples)
    assert all(a.end_ns <= b.begin_ns for a, b in pairwise(samples))
    assert all(s.mean_w == pytest.approx(CPU_W + GPU_W, rel=tolerance) for s in samples)
    assert samples[-1].thermal == "nominal"


def test_sampling_reaches_past_the_end_and_starts_afresh(stand_in):
    meter = stand_in()
    meter.start()
    asked_ns = time.monotonic_ns()
    first = meter.stop()
    assert first[-1].end_ns >= asked_ns
    assert integrate(first, asked_ns - 10**6, asked_ns).coverage == 1.0
    assert measure(meter, 3)[0].begin_ns >= first[-1].end_ns
    assert meter.flags == ()


def test_a_bad_record_is_missing_and_not_of_zero_watts(stand_in):
    meter = stand_in("nan")
    stand_in.record_log()
    samples = measure(meter)
    assert any("cpu_energy is not of 0 to 1000 W" in flag for flag in meter.flags), meter.flags
    assert all(s.mean_w == pytest.approx(CPU_W + GPU_W, rel=0.1) for s in samples)
    assert len(samples) == stand_in.log.read_bytes().count(b"<?xml ") - 1


@pytest.mark.parametrize(
    ("misdeed", "words"), [("dies", "ended with code 1"), ("hangs", "gave no record for 0.")]
)
def test_death_in_mid_run_keeps_the_whole_records(stand_in, monkeypatch, misdeed, words):
    monkeypatch.setattr(module, "REACH_S", 0.2)
    meter = stand_in(misdeed)
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


def test_a_child_of_root_ends_by_its_closed_pipe(stand_in, monkeypatch):
    sent = []

    def refuse(pid, number):
        sent.append(pid)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module, "STOP_S", 0.3)
    assert len(measure(stand_in("deaf"), 3)) >= 3  # one that ignores SIGTERM
    meter = stand_in()
    meter.start()
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "kill", refuse)
        assert len(meter.stop()) >= 1
    assert sent and not any(psutil.pid_exists(pid) for pid in sent)


@pytest.mark.parametrize("moment", ["start", "stop"])
def test_ctrl_c_in_a_wait_ends_the_process(stand_in, monkeypatch, moment):
    children, meter = [], stand_in("late" if moment == "start" else "")
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
    ],
)
def test_reasons(stand_in, monkeypatch, misdeed, words):
    monkeypatch.setattr(module, "READY_S", 0.1 if misdeed == "late" else 15.0)
    meter = stand_in(misdeed)
    assert words in meter.unavailable
    assert list(measure(meter)) == []


def test_reasons_where_there_is_none(stand_in, monkeypatch, tmp_path):
    assert "cannot be started" in stand_in(command=[str(tmp_path / "missing")]).unavailable
    monkeypatch.setattr(module, "find_command", lambda: None)
    assert "not found" in PowermetricsMeter().unavailable


def test_a_stand_in_and_another_powermetrics_are_flagged(stand_in, monkeypatch):
    monkeypatch.setattr(module, "is_apples", lambda _: False)
    running = [SimpleNamespace(info={"name": "powermetrics"})]
    monkeypatch.setattr(module.psutil, "process_iter", lambda _: running)
    meter = stand_in()
    measure(meter, 2)
    assert meter.source == "powermetrics stand-in"
    own, other = meter.flags
    assert "not measured" in own and "another powermetrics" in other


@pytest.mark.parametrize(
    ("platform", "program", "apples"),
    [
        ("darwin", "/usr/bin/powermetrics", True),
        ("darwin", "/opt/bin/powermetrics", False),
        ("linux", "/usr/bin/powermetrics", False),
    ],
)
def test_apples_own_is_where_macos_has_it(monkeypatch, platform, program, apples):
    monkeypatch.setattr(module.sys, "platform", platform)
    monkeypatch.setattr(module.shutil, "which", {"powermetrics": program, "sudo": "sudo"}.get)
    assert find_command() == ["sudo", "-n", program]
    assert module.is_apples(["sudo", "-n", program]) is apples


def test_a_sudo_ticket_that_expires_is_noticed_and_proved_again(stand_in, monkeypatch):
    """It lasts five minutes: what was proved before a download proves nothing."""
    waiting = stand_in()
    stand_in.record_log()
    monkeypatch.setenv("FAKE_SUDO", "password")
    assert stand_in().unavailable is None and not stand_in.log.exists()  # proved, not asked again
    waiting.start()
    assert "sudo wants a password" in waiting.unavailable and "sudo -v" in waiting.unavailable
    assert waiting.stop() == ()
    assert "sudo wants a password" in stand_in().unavailable
    monkeypatch.delenv("FAKE_SUDO")
    assert stand_in().unavailable is None
    monkeypatch.setenv("FAKE_SUDO", "password")
    module.forget_probes()
    assert "sudo wants a password" in stand_in().unavailable

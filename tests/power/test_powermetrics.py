"""The meter against the stand-in, which streams at real cadence and misbehaves on demand."""

import re
import time
from itertools import pairwise

import psutil
import pytest

import edge.power.powermetrics as module
from edge.power import powermetrics_timeline
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
    make.bin = tmp_path / "bin"
    return make


def measure(meter, records=6):
    """Samples of a run that lasts until so many records came."""
    meter.start()
    if meter._process is not None:
        process = meter._process
        process.wait_for(lambda: len(process.records) >= records, 10)
    return meter.stop()


def whole(samples):
    return integrate(samples, samples[0].begin_ns, samples[-1].end_ns)


def streamed_j(log, key):
    """Energy that the stand-in claims, found without the parser."""
    found = re.findall(rf"<processor>|<key>{key}_energy</key>\s*<integer>(\d+)", log.read_text())
    return sum(int(mj) for mj in found) / 1e3


def test_every_record_counts_once(stand_in):
    meter = stand_in()
    stand_in.record_log()
    samples = measure(meter, 8)
    assert (meter.unavailable, meter.flags) == (None, ())
    assert len(samples) == len(stand_in.log.read_bytes().split(b"\0")) >= 8
    assert sum(s.joules["CPU"] for s in samples) == pytest.approx(streamed_j(stand_in.log, "cpu"))
    assert all(a.end_ns <= b.begin_ns for a, b in pairwise(samples))
    energy = whole(samples)
    seconds = (samples[-1].end_ns - samples[0].begin_ns) / 1e9 * energy.coverage
    assert energy.total_j / seconds == pytest.approx(CPU_W + GPU_W, rel=0.03)
    assert energy.thermal_worst == "nominal"


def test_sampling_reaches_past_the_end_and_starts_afresh(stand_in):
    meter = stand_in()
    meter.start()
    asked_ns = time.monotonic_ns()
    first = meter.stop()
    assert first[-1].end_ns >= asked_ns
    assert integrate(first, asked_ns - 10**6, asked_ns).coverage == 1.0
    assert measure(meter, 3)[0].begin_ns >= first[-1].end_ns
    assert meter.flags == ()


@pytest.mark.parametrize("misdeed", ["late", "nul-first", "ultra", "by-line", "clock-step"])
def test_harmless_oddities_cost_nothing(stand_in, misdeed):
    meter = stand_in(misdeed)
    samples = measure(meter)
    assert (meter.unavailable, meter.flags) == (None, ())
    assert len(samples) >= 6 and all(s.joules["GPU"] > 0 for s in samples)
    assert samples[-1].end_ns - samples[0].begin_ns < 60 * 10**9


@pytest.mark.parametrize(
    ("misdeed", "words"),
    [
        ("nan", "cpu_energy is not of 0 to 1000 W"),
        ("garbage", "cut off or not a record"),
        ("twice", "the same record twice"),
    ],
)
def test_a_bad_record_is_left_out_and_flagged(stand_in, misdeed, words):
    meter = stand_in(misdeed)
    stand_in.record_log()
    samples = measure(meter)
    assert any(words in flag for flag in meter.flags), meter.flags
    assert all(s.mean_w == pytest.approx(CPU_W + GPU_W, rel=0.1) for s in samples)
    # It is missing, and not of zero watts.
    assert len(samples) == stand_in.log.read_bytes().count(b"<?xml ") - 1


@pytest.mark.parametrize(
    ("misdeed", "words"),
    [
        ("truncated-tail", "ended with code 0"),
        ("dies", "ended with code 1"),
        ("hangs", "gave no record for 0."),
    ],
)
def test_death_in_mid_run_keeps_the_whole_records(stand_in, monkeypatch, misdeed, words):
    monkeypatch.setattr(module, "REACH_S", 0.2)
    meter = stand_in(misdeed)
    meter.start()
    process = meter._process
    family = psutil.Process(process._child.pid).children(recursive=True)
    process.wait_for(lambda: len(process.records) >= 4, 10)
    if misdeed != "hangs":
        process.wait_for(lambda: False, 10)
    assert len(meter.stop()) == 4
    assert f"not measured to the end: powermetrics {words}" in meter.unavailable
    assert any("incomplete" in flag for flag in meter.flags)
    assert not any(child.is_running() for child in family)


def test_time_lost_between_records_is_a_hole(stand_in):
    meter = stand_in("lost-time")
    samples = measure(meter, 8)
    assert any("missing between records" in flag for flag in meter.flags)
    assert whole(samples).coverage < 0.9


def test_a_stalled_cpu_counter_leaves_the_gpu_alone(stand_in, monkeypatch):
    monkeypatch.setattr(powermetrics_timeline, "STALL_NS", 10**8)
    monkeypatch.setattr(module, "BATCH_S", 0.1)
    meter = stand_in("stalled")
    samples = measure(meter, 12)
    assert any("CPU counter stalled" in flag for flag in meter.flags)
    assert "not a total" in meter.boundary
    assert all(list(s.joules) == ["GPU"] for s in samples)
    assert not whole(samples).is_total


def test_batches_are_spread_and_waited_for(stand_in):
    meter = stand_in("batched")
    stand_in.record_log()
    samples = measure(meter)
    assert meter.flags == ()
    assert all(s.mean_w == pytest.approx(CPU_W + GPU_W, rel=0.3) for s in samples)
    assert sum(s.joules["CPU"] for s in samples) == pytest.approx(streamed_j(stand_in.log, "cpu"))


def test_a_child_of_root_ends_by_its_closed_pipe(stand_in, monkeypatch):
    sent = []

    def refuse(pid, number):
        sent.append(pid)
        raise PermissionError(1, "Operation not permitted")

    meter = stand_in()
    meter.start()
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "kill", refuse)
        assert len(meter.stop()) >= 1
    assert sent and not any(psutil.pid_exists(pid) for pid in sent)


def test_a_child_that_ignores_sigterm(stand_in, monkeypatch):
    monkeypatch.setattr(module, "STOP_S", 0.3)
    assert len(measure(stand_in("deaf"), 3)) >= 3


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
    if misdeed == "late":
        monkeypatch.setattr(module, "READY_S", 0.1)
    meter = stand_in(misdeed)
    assert words in meter.unavailable
    assert list(measure(meter)) == []


def test_reasons_where_there_is_none(stand_in, monkeypatch, tmp_path):
    assert "cannot be started" in stand_in(command=[str(tmp_path / "missing")]).unavailable
    monkeypatch.setattr(module, "find_command", lambda: None)
    assert "not found" in PowermetricsMeter().unavailable


def test_another_powermetrics_is_flagged(stand_in, monkeypatch):
    class Foreign:
        info = {"name": "powermetrics"}  # noqa: RUF012

    monkeypatch.setattr(module.psutil, "process_iter", lambda _: [Foreign])
    meter = stand_in()
    measure(meter, 2)
    assert any("another powermetrics" in flag for flag in meter.flags)


def test_a_stand_in_says_so(stand_in, monkeypatch):
    monkeypatch.undo()
    meter = PowermetricsMeter(INTERVAL_MS, install(stand_in.bin))
    measure(meter, 2)
    assert meter.source == "powermetrics stand-in"
    assert len(meter.flags) == 1 and "not measured" in meter.flags[0]


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
    assert "sudo wants a password" in waiting.unavailable
    assert "sudo -v" in waiting.unavailable and "five minutes" in waiting.unavailable
    assert waiting.stop() == ()
    assert "sudo wants a password" in stand_in().unavailable
    monkeypatch.delenv("FAKE_SUDO")
    assert stand_in().unavailable is None
    monkeypatch.setenv("FAKE_SUDO", "password")
    module.forget_probes()
    assert "sudo wants a password" in stand_in().unavailable

"""The meter against the stand-in, which streams at real cadence and misbehaves on demand."""

import os
import re
from itertools import pairwise

import psutil
import pytest

import edge.power.powermetrics as module
import edge.power.powermetrics_timeline as timeline
from edge.power.meter import integrate
from edge.power.powermetrics import PowermetricsMeter, find_command
from tests.support.fake_powermetrics import CPU_W, GPU_W, install

INTERVAL_MS = 20


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """stand_in(misdeeds) -> a meter that takes it for Apple's; it streams to `stand_in.log` too."""
    command = install(tmp_path / "bin")
    monkeypatch.setattr(module, "is_apples", lambda _: True)

    def make(misdeeds="", **options):
        monkeypatch.setenv("FAKE_POWERMETRICS", misdeeds)
        options = {"ready_s": 10.0, "patience_s": 5.0, **options}
        return PowermetricsMeter(INTERVAL_MS, options.pop("command", command), **options)

    make.log = tmp_path / "log"
    make.record_log = lambda: monkeypatch.setenv("FAKE_POWERMETRICS_LOG", str(make.log))
    make.bin = tmp_path / "bin"
    return make


def measure(meter, records=6):
    """Samples of a run that lasts until so many records came."""
    meter.start()
    process = meter._process
    if process is not None:
        process.wait_for(lambda: len(process.records) >= records, 10)
    return meter.stop()


def streamed_j(log, key):
    """What the stand-in says it used, found without the parser."""
    found = re.findall(rf"<processor>|<key>{key}_energy</key>\s*<integer>(\d+)", log.read_text())
    return sum(int(mj) for mj in found) / 1e3


def test_every_record_counts_once(stand_in):
    meter = stand_in()
    assert meter.unavailable is None
    stand_in.record_log()
    samples = measure(meter, 8)
    assert (meter.unavailable, meter.flags) == (None, ())
    assert len(samples) >= 8
    complete = stand_in.log.read_bytes().split(b"\0")
    assert len(samples) == len(complete)
    assert sum(s.joules["CPU"] for s in samples) == pytest.approx(streamed_j(stand_in.log, "cpu"))
    gaps = [b.begin_ns - a.end_ns for a, b in pairwise(samples)]
    assert all(gap >= 0 for gap in gaps)
    energy = integrate(samples, samples[0].begin_ns, samples[-1].end_ns)
    seconds = (samples[-1].end_ns - samples[0].begin_ns) / 1e9 * energy.coverage
    assert energy.total_j / seconds == pytest.approx(CPU_W + GPU_W, rel=0.03)
    assert energy.thermal_worst == "nominal"


def test_sampling_reaches_past_the_end(stand_in):
    meter = stand_in()
    meter.start()
    asked_ns = module.time.monotonic_ns()
    samples = meter.stop()
    assert samples[-1].end_ns >= asked_ns
    assert integrate(samples, asked_ns - 10**6, asked_ns).coverage == 1.0


def test_a_second_run_starts_afresh(stand_in):
    meter = stand_in()
    first, second = measure(meter, 3), measure(meter, 3)
    assert second[0].begin_ns >= first[-1].end_ns
    assert meter.flags == ()


@pytest.mark.parametrize(
    "misdeed",
    [
        *("late", "nul-first", "nul-after", "unknown-cluster", "noisy", "duplicate-keys"),
        *("ultra", "by-line"),
    ],
)
def test_what_is_harmless_costs_nothing(stand_in, misdeed):
    meter = stand_in(misdeed)
    samples = measure(meter, 6)
    assert (meter.unavailable, meter.flags) == (None, ())
    assert len(samples) >= 6
    assert all(s.joules["GPU"] > 0 for s in samples)


def test_the_tools_own_clock_does_not_matter(stand_in):
    meter = stand_in("clock-step")
    samples = measure(meter, 6)
    assert meter.flags == ()
    assert samples[-1].end_ns - samples[0].begin_ns < 60 * 10**9


@pytest.mark.parametrize(
    ("misdeed", "words"),
    [
        ("nan", "cpu_energy is not of 0 to 1000 W"),
        ("negative", "cpu_energy is not of 0 to 1000 W"),
        ("huge", "cpu_energy is not of 0 to 1000 W"),
        ("garbage", "cut off or not a record"),
        ("twice", "the same record twice"),
    ],
)
def test_a_bad_record_is_left_out_and_flagged(stand_in, misdeed, words):
    meter = stand_in(misdeed)
    stand_in.record_log()
    samples = measure(meter, 6)
    assert any(words in flag for flag in meter.flags), meter.flags
    assert all(s.mean_w == pytest.approx(CPU_W + GPU_W, rel=0.1) for s in samples)
    # What was rejected is missing, and not of zero watts.
    assert len(samples) == stand_in.log.read_bytes().count(b"<?xml ") - 1


@pytest.mark.parametrize("misdeed", ["truncated-tail", "dies", "aborts"])
def test_death_in_mid_run_keeps_what_was_whole(stand_in, misdeed):
    meter = stand_in(misdeed)
    samples = measure(meter, 99)
    assert len(samples) == 4
    assert "not measured to the end" in meter.unavailable
    assert any("incomplete" in flag for flag in meter.flags)


def test_a_hang_ends_with_a_reason(stand_in):
    meter = stand_in("hangs", patience_s=0.4)
    meter.start()
    process = meter._process
    family = psutil.Process(process._child.pid).children(recursive=True)
    process.wait_for(lambda: False, 10)
    assert len(meter.stop()) == 4
    assert "gave no record for 0.4 s" in meter.unavailable
    assert family
    assert not any(child.is_running() for child in family)


def test_time_lost_between_records_is_a_hole(stand_in):
    meter = stand_in("lost-time")
    samples = measure(meter, 8)
    assert any("missing between records" in flag for flag in meter.flags)
    energy = integrate(samples, samples[0].begin_ns, samples[-1].end_ns)
    assert energy.coverage < 0.9


def test_a_stalled_cpu_counter_leaves_the_gpu_alone(stand_in, monkeypatch):
    monkeypatch.setattr(timeline, "STALL_NS", 10**8)
    monkeypatch.setattr(module, "BATCH_S", 0.1)
    meter = stand_in("stalled")
    samples = measure(meter, 12)
    assert any("CPU counter stalled" in flag for flag in meter.flags)
    assert "not a total" in meter.boundary
    assert all(list(s.joules) == ["GPU"] for s in samples)
    assert not integrate(samples, samples[0].begin_ns, samples[-1].end_ns).is_total


def test_batches_are_spread_and_waited_for(stand_in):
    meter = stand_in("batched")
    stand_in.record_log()
    samples = measure(meter, 6)
    assert meter.flags == ()
    assert all(s.mean_w == pytest.approx(CPU_W + GPU_W, rel=0.3) for s in samples)
    assert sum(s.joules["CPU"] for s in samples) == pytest.approx(streamed_j(stand_in.log, "cpu"))


def test_an_unknown_pressure_is_not_nominal(stand_in):
    samples = measure(stand_in("hot"), 2)
    energy = integrate(samples, samples[0].begin_ns, samples[-1].end_ns)
    assert energy.thermal_worst == "lukewarm"


def test_a_child_that_is_roots_and_cannot_be_signalled(stand_in):
    sent = []

    def refuse(pid, number):
        sent.append(pid)
        raise PermissionError(1, "Operation not permitted")

    meter = stand_in(send_signal=refuse)
    assert len(measure(meter, 3)) >= 3
    assert sent
    # The closed pipe ends it at its next write.
    assert not any(psutil.pid_exists(pid) for pid in sent)


def test_a_child_that_is_deaf_to_sigterm(stand_in, monkeypatch):
    monkeypatch.setattr("edge.power.powermetrics_process.STOP_S", 0.3)
    meter = stand_in("deaf")
    samples = measure(meter, 3)
    assert len(samples) >= 3
    assert all(s.joules["CPU"] > 0 for s in samples)


@pytest.mark.parametrize("moment", ["while it starts", "while it stops"])
def test_ctrl_c_in_a_wait_ends_the_process(stand_in, monkeypatch, moment):
    children, meter = [], stand_in("late" if moment == "while it starts" else "")
    if moment == "while it stops":
        meter.start()

    def interrupted(process, done, timeout_s):
        child = psutil.Process(process._child.pid)
        children.extend([child, *child.children(recursive=True)])
        raise KeyboardInterrupt

    monkeypatch.setattr(module.PowermetricsProcess, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        meter.start() if moment == "while it starts" else meter.stop()
    assert children
    psutil.wait_procs(children, timeout=5)
    assert not any(child.is_running() for child in children)


def test_a_password_is_never_asked_for(stand_in, monkeypatch):
    monkeypatch.setenv("FAKE_SUDO", "password")
    meter = stand_in()
    assert "YOUR_NAME ALL=(root) NOPASSWD: /usr/bin/powermetrics" in meter.unavailable
    assert list(measure(meter)) == []


@pytest.mark.parametrize(
    ("misdeed", "words"),
    [
        ("needs-root", "sudo wants a password"),
        ("empty", "ended with code 0"),
        ("gpu-only", "no cpu_energy"),
    ],
)
def test_why_it_does_not_work_here(stand_in, misdeed, words):
    meter = stand_in(misdeed)
    assert words in meter.unavailable
    assert list(measure(meter)) == []


def test_one_that_says_nothing_is_given_up(stand_in):
    meter = stand_in("late", ready_s=0.1)
    assert "no record within 0.1 s" in meter.unavailable


def test_one_that_cannot_be_started(stand_in, tmp_path):
    meter = stand_in(command=[str(tmp_path / "missing")])
    assert "cannot be started" in meter.unavailable


def test_it_is_found_on_the_path(stand_in, monkeypatch):
    monkeypatch.setenv("PATH", f"{stand_in.bin}{os.pathsep}{os.environ['PATH']}")
    assert find_command() == [str(stand_in.bin / "sudo"), "-n", str(stand_in.bin / "powermetrics")]
    monkeypatch.setenv("FAKE_POWERMETRICS", "")
    assert PowermetricsMeter(INTERVAL_MS).unavailable is None


def test_without_it_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(module, "find_command", lambda: None)
    assert "not found" in PowermetricsMeter().unavailable


def test_another_powermetrics_is_told_about(stand_in, monkeypatch):
    monkeypatch.setattr(module, "_count_foreign", lambda: 1)
    meter = stand_in()
    measure(meter, 2)
    assert any("another powermetrics" in flag for flag in meter.flags)


def test_one_that_is_not_apples_says_so(stand_in, monkeypatch):
    monkeypatch.undo()
    meter = PowermetricsMeter(INTERVAL_MS, install(stand_in.bin))
    measure(meter, 2)
    assert meter.source == "powermetrics stand-in"
    assert len(meter.flags) == 1
    assert "MacBookPro17,1" in meter.flags[0] and "not measured" in meter.flags[0]


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
    assert module.is_apples(["/usr/bin/sudo", "-n", program]) is apples


def test_it_is_tried_out_once_for_all_processes_of_a_run(stand_in, monkeypatch):
    assert stand_in().unavailable is None
    stand_in.record_log()
    again = stand_in()
    assert again.unavailable is None and not stand_in.log.exists()
    assert len(measure(again, 2)) >= 2
    monkeypatch.setenv("FAKE_SUDO", "password")
    late = stand_in()
    late.start()
    assert "NOPASSWD" in late.unavailable


def test_a_ticket_that_expires_is_noticed_and_proved_again(stand_in, monkeypatch):
    """sudo's ticket lasts five minutes: what was proved before a download proves nothing."""
    waiting = stand_in()
    assert waiting.unavailable is None
    monkeypatch.setenv("FAKE_SUDO", "password")
    assert stand_in().unavailable is None  # proved before, and not asked again
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

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from edge.bench.cooldown import (
    Cooled,
    Idle,
    baseline_drift,
    cool_down,
    kept_awake,
    measure_idle,
)
from tests.bench.fakes import FakeMachine

IDLE = Idle(watts=5.0, sd_w=0.1, seconds=10.0, samples=20)


def test_where_nothing_can_be_known_it_does_not_wait():
    fake = FakeMachine(watts=None, thermal=None, busy=1.0)
    assert cool_down(60, fake.machine(), None) == Cooled(0.0)
    assert fake.slept == []


def test_zero_turns_it_off():
    fake = FakeMachine(thermal="heavy")
    assert cool_down(0, fake.machine(), None) == Cooled(0.0)
    assert fake.slept == []


def test_it_waits_until_the_pressure_is_nominal():
    fake = FakeMachine(thermal=["heavy", "heavy", "moderate", "nominal"])
    cooled = cool_down(60, fake.machine(), None)
    assert cooled == Cooled(4.0)
    assert fake.slept == [2.0, 2.0]


def test_it_waits_no_longer_than_it_may_and_says_what_was_wrong():
    fake = FakeMachine(thermal="heavy")
    cooled = cool_down(5, fake.machine(), None)
    assert cooled == Cooled(5.0, "thermal pressure is heavy")
    assert sum(fake.slept) == 5.0


def test_without_a_meter_the_load_tells():
    fake = FakeMachine(thermal="nominal", busy=[0.9, 0.3, 0.1])
    assert cool_down(60, fake.machine(), None) == Cooled(4.0)
    fake = FakeMachine(thermal="nominal", busy=0.9)
    assert cool_down(3, fake.machine(), None).unsettled == "programs use 90% of the processor"


def test_with_a_meter_power_tells_even_where_heat_is_unknown():
    fake = FakeMachine(watts=lambda: 20.0 if fake.clock.now_ns < 5e9 else 5.5)
    cooled = cool_down(60, fake.machine(), IDLE)
    assert 5 <= cooled.waited_s <= 9
    assert cooled.unsettled is None
    fake = FakeMachine(watts=20.0)
    assert cool_down(6, fake.machine(), IDLE).unsettled == "power is 20.0 W, 5.0 W at rest"


def test_idle_is_what_the_meter_says_of_the_time():
    fake = FakeMachine(watts=5.0)
    idle = measure_idle(10, fake.machine())
    assert (idle.watts, idle.sd_w) == pytest.approx((5.0, 0.0))
    assert (idle.seconds, idle.samples) == (10.0, 20)


def test_idle_carries_its_spread():
    fake = FakeMachine(watts=lambda: 4.0 + 2.0 * (fake.calls.__next__() % 2))
    fake.calls = iter(range(1000))
    idle = measure_idle(10, fake.machine())
    assert idle.watts == pytest.approx(5.0)
    assert idle.sd_w == pytest.approx(1.026, abs=1e-3)


@pytest.mark.parametrize(("watts", "seconds"), [(None, 10), (5.0, 0)])
def test_without_a_meter_or_time_there_is_no_idle_power(watts, seconds):
    assert measure_idle(seconds, FakeMachine(watts=watts).machine()) is None


def test_a_meter_that_gives_nothing_gives_no_idle_power():
    fake = FakeMachine(watts=5.0)
    fake.new_meter = lambda: Silent()
    assert measure_idle(10, fake.machine()) is None


class Silent:
    unavailable = None

    def start(self):
        pass

    def stop(self):
        return []


def test_a_baseline_that_moves_is_said():
    assert baseline_drift(IDLE, None) is None
    assert baseline_drift(IDLE, replace(IDLE, watts=5.4)) is None
    said = baseline_drift(IDLE, replace(IDLE, watts=7.0))
    assert "from 5.00 W to 7.00 W" in said
    noisy = replace(IDLE, sd_w=1.5)
    assert baseline_drift(noisy, replace(noisy, watts=7.0)) is None


# --- staying awake


@pytest.fixture
def caffeinate(tmp_path, monkeypatch):
    """A stand-in on the PATH that notes its arguments and waits to be ended."""
    script = tmp_path / "caffeinate"
    notes = tmp_path / "notes"
    script.write_text(f'#!/bin/sh\necho "$@" > {notes}.part\nmv {notes}.part {notes}\nexec cat\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return notes


def test_a_mac_is_kept_awake_and_let_go(caffeinate, monkeypatch):
    started = []
    popen = subprocess.Popen

    def noted(command, **_):
        started.append(popen(command, stdin=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    with kept_awake("darwin"):
        while not caffeinate.exists():
            assert started[0].poll() is None
    assert caffeinate.read_text().split() == ["-i", "-w", str(os.getpid())]
    assert started[0].returncode is not None


def test_without_caffeinate_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with kept_awake("darwin"):
        pass


def test_elsewhere_nothing_is_started(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: sys.exit("started"))
    with kept_awake("linux"):
        pass

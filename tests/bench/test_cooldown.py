import os
import subprocess
import sys
from dataclasses import replace
from unittest.mock import Mock

import pytest

from edge.bench import cooldown
from edge.bench.cooldown import (
    Cooldown,
    Idle,
    baseline_drift,
    cool_down,
    free_cores,
    keep_awake,
    measure_idle,
    wait_for_cores,
)
from tests.bench.fakes import FakeClock, FakeMachine, FakeMeter, next_of

BUSY = "programs use 90% of the processor"
IDLE = Idle(watts=5.0, sd_w=0.1, seconds=10.0, samples=20)


@pytest.mark.parametrize(
    ("limit_s", "fields", "cooldown"),
    [
        (60, {"busy": 1.0}, Cooldown(0.0)),  # nothing is known
        (0, {"thermal": "heavy"}, Cooldown(0.0)),
        (60, {"thermal": ["heavy", "heavy", "moderate", "nominal"]}, Cooldown(4.0)),
        (5, {"thermal": "heavy"}, Cooldown(5.0, "thermal pressure is heavy")),
        (60, {"thermal": "nominal", "busy": [0.9, 0.3, 0.1]}, Cooldown(4.0)),
        (3, {"thermal": "nominal", "busy": 0.9}, Cooldown(3.0, BUSY)),
    ],
)
def test_waits_for_heat_and_load_up_to_the_limit(monkeypatch, limit_s, fields, cooldown):
    machine = FakeMachine(monkeypatch, **fields)
    assert cool_down(limit_s, machine.new_meter, None) == cooldown
    assert sum(machine.clock.slept) == cooldown.waited_s


def test_waits_for_power_where_heat_is_unknown(monkeypatch):
    machine = FakeMachine(monkeypatch)
    machine.watts = lambda: 20.0 if machine.clock.now_ns < 5e9 else 5.5
    cooldown = cool_down(60, machine.new_meter, IDLE)
    assert 5 <= cooldown.waited_s <= 9
    assert cooldown.timed_out is None
    hot = FakeMachine(monkeypatch, watts=20.0)
    assert cool_down(6, hot.new_meter, IDLE).timed_out == "power is 20.0 W, 5.0 W when idle"


def test_idle_power_has_mean_and_spread(monkeypatch):
    calls = iter(range(1000))
    watts = lambda: 4.0 + 2.0 * (next(calls) % 2)  # noqa: E731
    idle = measure_idle(10, FakeMachine(monkeypatch, watts).new_meter)
    assert (idle.seconds, idle.samples) == (10.0, 20)
    assert idle.watts == pytest.approx(5.0)
    assert idle.sd_w == pytest.approx(1.026, abs=1e-3)
    assert measure_idle(10, FakeMachine(monkeypatch).new_meter) is None
    assert measure_idle(10, lambda: FakeMeter(FakeClock())) is None  # no sample


@pytest.mark.parametrize(
    ("usable", "logical", "physical", "busy", "free"),
    [
        (2, 2, 2, 0.2, 2),  # services of an idle machine
        (2, 2, 2, 0.5, 1),
        (2, 2, 2, 1.0, 0),
        (12, 12, 12, 0.1, 12),
        (8, 16, 8, 0.25, 4),  # a busy thread takes a core, not the half of one
        (2, 64, 32, 0.25, 2),  # of a large machine this process may use a part
    ],
)
def test_cores_are_free_that_other_programs_leave(
    monkeypatch, usable, logical, physical, busy, free
):
    FakeMachine(monkeypatch, busy=busy)
    counts = {True: logical, False: physical}
    monkeypatch.setattr(cooldown.psutil, "cpu_count", lambda logical=True: counts[logical])
    monkeypatch.setattr(cooldown, "usable_cores", lambda: usable)
    assert free_cores() == free


@pytest.mark.parametrize(
    ("limit_s", "left", "free", "slept_s"),
    [(0, [0], 0, 0), (60, [2], 2, 0), (60, [0, 1, 2], 2, 4), (5, [1], 1, 6)],
)
def test_waits_for_cores_up_to_the_limit(monkeypatch, limit_s, left, free, slept_s):
    machine, waiting = FakeMachine(monkeypatch), Mock()
    monkeypatch.setattr(cooldown, "free_cores", lambda: next_of(left))
    assert wait_for_cores(2, limit_s, waiting) == free
    assert (sum(machine.clock.slept), waiting.call_count) == (slept_s, slept_s > 0)


def test_a_changed_idle_power_is_a_warning_unless_it_is_noise():
    assert baseline_drift(IDLE, None) is None
    assert baseline_drift(IDLE, replace(IDLE, watts=5.4)) is None
    assert "from 5.00 W to 7.00 W" in baseline_drift(IDLE, replace(IDLE, watts=7.0))
    noisy = replace(IDLE, sd_w=1.5)
    assert baseline_drift(noisy, replace(noisy, watts=7.0)) is None


def test_a_mac_is_kept_awake(monkeypatch):
    started = []
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_awake()  # without caffeinate
    monkeypatch.setattr(subprocess, "Popen", started.append)
    keep_awake()
    assert started == [("/usr/bin/caffeinate", "-i", "-w", str(os.getpid()))]

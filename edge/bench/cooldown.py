"""Wait until the machine is idle; measure idle power; keep the machine awake."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from edge.device.describe import usable_cores
from edge.device.state import NOMINAL, read_state
from edge.power.meter import Meter, integrate

NewMeter = Callable[[], Meter]

PERIOD_S = 2.0
# Power near idle: a quiet system varies by so much. A small chip idles at a tenth of a watt.
IDLE_FACTOR, IDLE_SLACK_W = 1.25, 1.0
# Share of all cores that other programs may use.
QUIET_SHARE = 0.25
BUSY_S = 0.5
# Cores, or share of all, that the services of an idle desktop use.
BACKGROUND_CORES, BACKGROUND_SHARE = 0.5, 0.1
# A larger change of the idle power makes joules net of it uncertain.
MAX_DRIFT = 0.10
MIN_COVERAGE = 0.9


@dataclass(frozen=True)
class Cooldown:
    """The wait before a process; `timed_out` is the reason why it was not idle at the limit."""

    waited_s: float = 0.0
    timed_out: str | None = None


@dataclass(frozen=True)
class Idle:
    """Idle power: mean and standard deviation over the meter's samples."""

    watts: float
    sd_w: float
    seconds: float
    samples: int


def cool_down(limit_s: float, new_meter: NewMeter, idle: Idle | None) -> Cooldown:
    """Waits until thermal pressure is nominal and power, or else the load, is near idle.

    Does not wait where neither heat nor power is known. `idle` is None without a meter.
    """
    if limit_s <= 0 or (read_state().thermal is None and idle is None):
        return Cooldown()
    begin_ns = time.monotonic_ns()
    while True:
        reason = _busy_reason(new_meter, idle)
        waited_s = (time.monotonic_ns() - begin_ns) / 1e9
        if reason is None or waited_s >= limit_s:
            return Cooldown(waited_s, reason)
        time.sleep(min(PERIOD_S, limit_s - waited_s))


def free_cores() -> int:
    """Cores that other programs leave free, of those that this process may use."""
    logical, usable = psutil.cpu_count() or 1, usable_cores()
    used = psutil.cpu_percent(interval=BUSY_S) / 100 * logical
    if used <= max(BACKGROUND_CORES, BACKGROUND_SHARE * logical):
        return usable
    return min(usable, max((psutil.cpu_count(logical=False) or 1) - round(used), 0))


def wait_for_cores(wanted: int, limit_s: float, waiting: Callable[[], None]) -> int:
    """Free cores once there are as many as wanted, or at the limit; `waiting` is called once."""
    free, end_ns = free_cores(), time.monotonic_ns() + limit_s * 1e9
    if free < wanted and limit_s > 0:
        waiting()
    while free < wanted and time.monotonic_ns() < end_ns:
        time.sleep(PERIOD_S)
        free = free_cores()
    return free


def _busy_reason(new_meter: NewMeter, idle: Idle | None) -> str | None:
    thermal = read_state().thermal
    if thermal not in (None, NOMINAL):
        return f"thermal pressure is {thermal}"
    if idle is None:
        share = psutil.cpu_percent(interval=BUSY_S) / 100
        return None if share <= QUIET_SHARE else f"programs use {share:.0%} of the processor"
    probe = measure_idle(PERIOD_S, new_meter)
    if probe is None or probe.watts <= IDLE_FACTOR * idle.watts + IDLE_SLACK_W:
        return None
    return f"power is {probe.watts:.1f} W, {idle.watts:.1f} W when idle"


def measure_idle(seconds: float, new_meter: NewMeter) -> Idle | None:
    """Power while this process sleeps; None without a meter."""
    if seconds <= 0:
        return None
    meter = new_meter()
    if meter.unavailable is not None:
        return None
    meter.start()
    begin_ns = time.monotonic_ns()
    try:
        time.sleep(seconds)
    finally:
        end_ns = time.monotonic_ns()
        samples = meter.stop()
    energy = integrate(samples, begin_ns, max(end_ns, begin_ns + 1))
    if energy.coverage < MIN_COVERAGE or not energy.is_total:
        return None
    length_s = (end_ns - begin_ns) / 1e9
    inside = [s.mean_w for s in samples if s.end_ns > begin_ns and s.begin_ns < end_ns]
    return Idle(
        watts=energy.total_j / (length_s * energy.coverage),
        sd_w=statistics.stdev(inside) if len(inside) > 1 else 0.0,
        seconds=length_s,
        samples=len(inside),
    )


def baseline_drift(before: Idle | None, after: Idle | None) -> str | None:
    """The warning where idle power changed by more than its noise and a tenth."""
    if before is None or after is None:
        return None
    moved_w = abs(after.watts - before.watts)
    if moved_w <= max(MAX_DRIFT * before.watts, before.sd_w + after.sd_w):
        return None
    return (
        f"idle power changed from {before.watts:.2f} W to {after.watts:.2f} W during the run, so "
        f"joules_per_token_net is uncertain: close other programs and measure again"
    )


def keep_awake() -> None:
    """Starts `caffeinate -i` on macOS; it ends with this process."""
    if sys.platform == "darwin":
        with suppress(OSError):  # without it the machine may sleep, which the trials show
            subprocess.Popen(("/usr/bin/caffeinate", "-i", "-w", str(os.getpid())))

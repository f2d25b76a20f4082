"""Let the machine come to rest before a measurement, and learn what rest costs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import getpid

import psutil

from edge.device.state import NOMINAL, State, look
from edge.power.meter import Meter, integrate

NewMeter = Callable[[], Meter]
Sleep = Callable[[float], None]
Clock = Callable[[], int]

PERIOD_S = 2.0
# Near idle: what a quiet system wavers by. A small chip's idle is a tenth of a watt.
IDLE_FACTOR, IDLE_SLACK_W = 1.25, 1.0
# Share of all cores that programs in the background may use.
QUIET_SHARE = 0.25
BUSY_S = 0.5
# A baseline that moves by more makes what is net of it uncertain.
MAX_DRIFT = 0.10
MIN_COVERAGE = 0.9


@dataclass(frozen=True)
class Cooled:
    """How long a process waited; `unsettled` says what was still wrong at the limit."""

    waited_s: float = 0.0
    unsettled: str | None = None


@dataclass(frozen=True)
class Idle:
    """Power without work: mean and standard deviation over the meter's samples."""

    watts: float
    sd_w: float
    seconds: float
    samples: int


@dataclass(frozen=True)
class Machine:
    """What waiting needs to know of the machine; all of it can be a stand-in.

    `busy` blocks for a moment and gives the share of all cores in use.
    """

    new_meter: NewMeter
    look: Callable[[], State] = look
    clock: Clock = time.monotonic_ns
    sleep: Sleep = time.sleep
    busy: Callable[[], float] = lambda: psutil.cpu_percent(interval=BUSY_S) / 100


def cool_down(limit_s: float, machine: Machine, idle: Idle | None) -> Cooled:
    """Wait until thermal pressure is nominal and power, or else the load, is near rest.

    Where neither heat nor power can be known it does not wait: time alone proves nothing.

    Args:
        limit_s: wait no longer than this; 0 does not even look.
        machine: what tells and what waits.
        idle: its power at rest, None where no meter measured it.
    """
    if limit_s <= 0 or (machine.look().thermal is None and idle is None):
        return Cooled()
    begin_ns = machine.clock()
    while True:
        wrong = _unrest(machine, idle)
        waited_s = (machine.clock() - begin_ns) / 1e9
        if wrong is None or waited_s >= limit_s:
            return Cooled(waited_s, wrong)
        machine.sleep(min(PERIOD_S, limit_s - waited_s))


def measure_idle(seconds: float, machine: Machine) -> Idle | None:
    """Power while nothing of ours runs; None where no meter can tell."""
    if seconds <= 0:
        return None
    meter = machine.new_meter()
    if meter.unavailable is not None:
        return None
    meter.start()
    begin_ns = machine.clock()
    try:
        machine.sleep(seconds)
    finally:
        end_ns = machine.clock()
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
    """A sentence where idle power moved by more than its own noise and a tenth."""
    if before is None or after is None:
        return None
    moved_w = abs(after.watts - before.watts)
    if moved_w <= max(MAX_DRIFT * before.watts, before.sd_w + after.sd_w):
        return None
    return (
        f"idle power moved from {before.watts:.2f} W to {after.watts:.2f} W during the run, so "
        f"that joules_per_token_net is uncertain: close other programs and measure again"
    )


@contextmanager
def kept_awake(system: str = sys.platform) -> Iterator[None]:
    """On macOS hold `caffeinate -i`, so that the machine does not sleep in the middle.

    It watches this process and ends with it, however that ends.
    """
    if system != "darwin":
        yield
        return
    holder = None
    with suppress(OSError):  # not there: the machine may sleep, and the trials will show it
        holder = subprocess.Popen(("caffeinate", "-i", "-w", str(getpid())))
    try:
        yield
    finally:
        if holder is not None:
            holder.terminate()
            holder.wait()


def _unrest(machine: Machine, idle: Idle | None) -> str | None:
    """What keeps the machine from being at rest, None if nothing does."""
    thermal = machine.look().thermal
    if thermal not in (None, NOMINAL):
        return f"thermal pressure is {thermal}"
    if idle is None:
        share = machine.busy()
        return None if share <= QUIET_SHARE else f"programs use {share:.0%} of the processor"
    probe = measure_idle(PERIOD_S, machine)
    if probe is None or probe.watts <= IDLE_FACTOR * idle.watts + IDLE_SLACK_W:
        return None
    return f"power is {probe.watts:.1f} W, {idle.watts:.1f} W at rest"

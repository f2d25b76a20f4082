"""The machine's state before and after a trial: what can make a figure worth less.

Nothing here needs root or takes longer than some 50 ms: the small programs that macOS is asked
run at the same time. What cannot be found out is None, and None is never a doubt.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.device import state_linux, state_macos
from edge.device.shell import Run, output_of

NOMINAL = "nominal"
MAINS = "mains"
# Load that a quiet desktop makes by itself: 1, and on many cores, as idle Macs have, more.
ALLOWED_LOAD, ALLOWED_LOAD_PER_CORE = 1.0, 0.25


@dataclass(frozen=True)
class State:
    """One look at the machine.

    `power_source` is "mains", "battery" or "UPS". `thermal` is Apple's pressure level in lower
    case, on Linux None. `throttled` counts, on Linux, how often a core was slowed for its heat
    since the machine started. `memory_pressure` is "normal", "warn" or "critical".
    """

    power_source: str | None = None
    battery_percent: int | None = None
    low_power: bool | None = None
    governor: str | None = None
    thermal: str | None = None
    throttled: int | None = None
    load_1m: float | None = None
    memory_pressure: str | None = None
    cpu_mhz: float | None = None


def look(system: str | None = None, run: Run = output_of, root: Path = Path("/")) -> State:
    """Look at this machine.

    Args:
        system: "Darwin" or "Linux", by default what this is; on others only the load is known.
        run: runs a small program and gives what it prints, empty if it fails.
        root: where /proc and /sys are.
    """
    known: Mapping[str, Any] = {}
    system = system or platform.system()
    if system == "Darwin":
        known = state_macos.look(run)
    elif system == "Linux":
        known = state_linux.look(root)
    return State(load_1m=os.getloadavg()[0], **known)


def doubts(before: State, after: State, threads: int = 0) -> list[str]:
    """Why a figure measured between two looks may be off, a sentence each with what to do.

    Args:
        before: at the beginning.
        after: at the end.
        threads: how many the measurement itself kept busy, here or in the minute before.
    """
    found = [_power(before, after), _low_power(before, after), _thermal(before, after)]
    found += [_throttled(before, after), _governor(before, after)]
    found += [_load(before, after, threads), _memory(before, after)]
    return [sentence for sentence in found if sentence is not None]


def _power(before: State, after: State) -> str | None:
    if before.power_source != after.power_source and None not in (
        before.power_source,
        after.power_source,
    ):
        return (
            f"the power source changed from {before.power_source} to {after.power_source} during "
            f"the run: stay on mains and measure again"
        )
    source = before.power_source or after.power_source
    if source in (None, MAINS):
        return None
    return f"the machine ran on {source}: plug it in and measure again"


def _low_power(before: State, after: State) -> str | None:
    if before.low_power or after.low_power:
        how = (
            "type sudo cpupower frequency-set -g performance"
            if before.governor == "powersave"
            else "switch it off in the system settings"
        )
        return f"low power mode was on: {how} and measure again"
    return None


def _thermal(before: State, after: State) -> str | None:
    levels = [s.thermal for s in (before, after) if s.thermal not in (None, NOMINAL)]
    if not levels:
        return None
    when = "before" if before.thermal not in (None, NOMINAL) else "after"
    return (
        f"thermal pressure was {levels[0]}, not {NOMINAL}, {when} the run: let the machine cool "
        f"and measure again"
    )


def _throttled(before: State, after: State) -> str | None:
    times = (after.throttled or 0) - (before.throttled or 0)
    if before.throttled is None or after.throttled is None or times <= 0:
        return None
    return f"the processor was slowed for its heat {times} times during the run: let it cool"


def _governor(before: State, after: State) -> str | None:
    names = {s.governor for s in (before, after) if s.governor is not None}
    if len(names) > 1:
        return (
            f"the CPU's governor changed during the run ({' and '.join(sorted(names))}): keep one"
        )
    return None


def _load(before: State, after: State, threads: int) -> str | None:
    load = max(before.load_1m or 0.0, after.load_1m or 0.0)
    if load <= threads + allowed_load():
        return None
    ours = f", {threads} of it ours" if threads else ""
    return f"other programs kept the machine busy (load {load:.1f}{ours}): close them"


def allowed_load(cores: int | None = None) -> float:
    """Load that other programs may make: by default on the cores of this machine."""
    cores = cores or os.cpu_count() or 1
    return max(ALLOWED_LOAD, ALLOWED_LOAD_PER_CORE * cores)


def _memory(before: State, after: State) -> str | None:
    for state in (after, before):
        if state.memory_pressure not in (None, "normal"):
            return (
                f"memory was short (pressure {state.memory_pressure}): close other programs or "
                f"use a smaller artefact"
            )
    return None

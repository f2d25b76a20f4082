"""The machine's state before and after a trial: what can make a figure worth less.

Nothing here needs root or takes longer than some 50 ms: the small programs that macOS is asked
run at the same time. What cannot be found out is None, and None is never a doubt.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.device.system import Run, number_in, output_of, text_of

NOMINAL = "nominal"
# Apple's levels of thermal pressure, mildest first.
THERMAL_LEVELS = (NOMINAL, "light", "moderate", "heavy", "critical", "trapping", "sleeping")
MAINS = "mains"
# Load that a quiet desktop makes by itself: 1, and on many cores, as idle Macs have, more.
ALLOWED_LOAD, ALLOWED_LOAD_PER_CORE = 1.0, 0.25

# What macOS tells without root. `ProcessInfo.thermalState` would hide the second level.
THERMAL_KEY = "com.apple.system.thermalpressurelevel"
NOTIFIED_LEVELS = (NOMINAL, "moderate", "heavy", "trapping", "sleeping")  # by their number
PRESSURE_LEVELS = {"1": "normal", "2": "warn", "4": "critical"}
POWER_SOURCES = {"AC Power": MAINS, "Battery Power": "battery", "UPS Power": "UPS"}
COMMANDS: tuple[Sequence[str], ...] = (
    ("pmset", "-g", "batt"),
    ("pmset", "-g"),
    ("notifyutil", "-g", THERMAL_KEY),
    ("sysctl", "-n", "kern.memorystatus_vm_pressure_level"),
)

# Linux: reading a frequency asks the core itself; eight are enough to see a slow machine.
MAX_POLICIES = 8
# Per cent of the last ten seconds in which some, or all, tasks waited for memory.
WARN_PERCENT = 1.0


@dataclass(frozen=True)
class State:
    """One look at the machine.

    `power_source` is "mains", "battery" or "UPS". `thermal` is one of THERMAL_LEVELS, on Linux
    None. `throttled` counts, on Linux, how often a core was slowed for its heat since the machine
    started. `memory_pressure` is "normal", "warn" or "critical".
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
        known = _look_macos(run)
    elif system == "Linux":
        known = _look_linux(root)
    return State(load_1m=os.getloadavg()[0], **known)


def _look_macos(run: Run) -> Mapping[str, Any]:
    """Fields of `State`. An Apple chip's frequency needs root."""
    with ThreadPoolExecutor(len(COMMANDS)) as pool:
        batt, settings, thermal, pressure = pool.map(run, COMMANDS)
    return {
        "power_source": _macos_power_source(batt),
        "battery_percent": _macos_battery_percent(batt),
        "low_power": _macos_low_power(settings),
        "thermal": _macos_thermal_level(thermal),
        "memory_pressure": PRESSURE_LEVELS.get(pressure.strip()),
    }


def _macos_power_source(batt: str) -> str | None:
    """From `pmset -g batt`, whose first line is "Now drawing from 'AC Power'"."""
    match = re.search(r"Now drawing from '([^']+)'", batt)
    return POWER_SOURCES.get(match[1], match[1]) if match else None


def _macos_battery_percent(batt: str) -> int | None:
    """Charge of the built-in battery; None for a Mac without one."""
    match = re.search(r"InternalBattery.*?(\d+)%", batt)
    return int(match[1]) if match else None


def _macos_low_power(settings: str) -> bool | None:
    """From `pmset -g`: `lowpowermode 1`, or `powermode 1` where there are three (2 is high)."""
    match = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d+)", settings, re.MULTILINE)
    return match[1] == "1" if match else None


def _macos_thermal_level(answer: str) -> str | None:
    """From `notifyutil -g KEY`, which prints the key and a number.

    A number that is not in the header is named as it is, so that it counts as not nominal.
    """
    match = re.search(rf"{re.escape(THERMAL_KEY)}\s+(\d+)", answer)
    if match is None:
        return None
    level = int(match[1])
    return NOTIFIED_LEVELS[level] if level < len(NOTIFIED_LEVELS) else f"level {level}"


def _look_linux(root: Path) -> Mapping[str, Any]:
    """Fields of `State`."""
    cpus = root / "sys/devices/system/cpu"
    governor = text_of(cpus / "cpu0/cpufreq/scaling_governor")
    driver = text_of(cpus / "cpu0/cpufreq/scaling_driver")
    return {
        "power_source": _linux_power_source(root / "sys/class/power_supply"),
        "battery_percent": _linux_battery_percent(root / "sys/class/power_supply"),
        "low_power": _linux_low_power(
            governor, driver, text_of(root / "sys/firmware/acpi/platform_profile")
        ),
        "governor": governor,
        "throttled": _linux_throttled(cpus),
        "memory_pressure": _linux_memory_pressure(text_of(root / "proc/pressure/memory") or ""),
        "cpu_mhz": _linux_cpu_mhz(cpus, text_of(root / "proc/cpuinfo") or ""),
    }


def _linux_power_source(supplies: Path) -> str | None:
    """Mains where an adapter is on, battery where one discharges; None for a plain desktop."""
    if any(number_in(s / "online") == 1 for s in _supplies(supplies, "Mains", "USB")):
        return MAINS
    batteries = list(_supplies(supplies, "Battery"))
    if any(text_of(s / "status") == "Discharging" for s in batteries):
        return "battery"
    return MAINS if batteries else None


def _linux_battery_percent(supplies: Path) -> int | None:
    """Charge of the first battery."""
    charges = (number_in(s / "capacity") for s in _supplies(supplies, "Battery"))
    return next((charge for charge in charges if charge is not None), None)


def _linux_low_power(governor: str | None, driver: str | None, profile: str | None) -> bool | None:
    """The platform's low-power profile, or a governor that keeps the clock down.

    With intel_pstate and amd-pstate in active mode the governor `powersave` is the ordinary one
    and raises the clock under load; with every other driver it pins the lowest.
    """
    if governor is None and profile is None:
        return None
    pinned = governor == "powersave" and "pstate" not in (driver or "")
    return pinned or profile == "low-power"


def _linux_throttled(cpus: Path) -> int | None:
    """How often cores were slowed for their heat since the machine started (Intel only)."""
    counts = [number_in(p) for p in cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _linux_memory_pressure(pressure: str) -> str | None:
    """From /proc/pressure/memory: tasks that waited for memory in the last ten seconds."""
    average = {kind: float(v) for kind, v in re.findall(r"^(\w+) avg10=([\d.]+)", pressure, re.M)}
    if "some" not in average:
        return None
    if average.get("full", 0.0) >= WARN_PERCENT:
        return "critical"
    return "warn" if average["some"] >= WARN_PERCENT else "normal"


def _linux_cpu_mhz(cpus: Path, cpuinfo: str) -> float | None:
    """Mean clock of some cores at this moment."""
    policies = sorted(cpus.glob("cpufreq/policy*/scaling_cur_freq"))[:MAX_POLICIES]
    clocks = [khz / 1000 for path in policies if (khz := number_in(path))]
    if not clocks:
        found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", cpuinfo, re.MULTILINE)
        clocks = [float(mhz) for mhz in found]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def _supplies(folder: Path, *kinds: str) -> Iterator[Path]:
    """Power supplies of the machine; the battery of a mouse has the scope "Device"."""
    for supply in sorted(folder.glob("*")):
        if text_of(supply / "type") in kinds and text_of(supply / "scope") != "Device":
            yield supply


def doubts(before: State, after: State, threads: int = 0) -> dict[str, str]:
    """Why a figure measured between two looks may be off: kind -> sentence with what to do.

    Args:
        before: at the beginning.
        after: at the end.
        threads: how many the measurement itself kept busy, here or in the minute before.
    """
    found = {
        "mains": _power(before, after),
        "low power": _low_power(before, after),
        "thermal": _thermal(before, after),
        "throttled": _throttled(before, after),
        "governor": _governor(before, after),
        "load": _load(before, after, threads),
        "memory": _memory(before, after),
    }
    return {kind: sentence for kind, sentence in found.items() if sentence is not None}


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

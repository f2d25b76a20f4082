"""State of the machine before and after a trial, and warnings about its effect on figures.

Nothing here needs root or takes longer than about 50 ms: the small programs of macOS run
concurrently. An unknown value is None, which is never a warning.
"""

import os
import platform
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.device.system import number_in, output_of, text_of

NOMINAL = "nominal"
# Apple's levels of thermal pressure, mildest first.
THERMAL_LEVELS = (NOMINAL, "light", "moderate", "heavy", "critical", "trapping", "sleeping")
MAINS = "mains"
# Load average of an idle desktop: up to 1, more on idle Macs with many cores.
ALLOWED_LOAD, ALLOWED_LOAD_PER_CORE = 1.0, 0.25

# macOS without root. `ProcessInfo.thermalState` would hide the second level.
THERMAL_KEY = "com.apple.system.thermalpressurelevel"
NOTIFIED_LEVELS = {"0": NOMINAL, "1": "moderate", "2": "heavy", "3": "trapping", "4": "sleeping"}
PRESSURE_LEVELS = {"1": "normal", "2": "warn", "4": "critical"}
POWER_SOURCES = {"AC Power": MAINS, "Battery Power": "battery", "UPS Power": "UPS"}
COMMANDS = (
    ("pmset", "-g", "batt"),
    ("pmset", "-g"),
    ("notifyutil", "-g", THERMAL_KEY),
    ("sysctl", "-n", "kern.memorystatus_vm_pressure_level"),
)
# Linux: each frequency that is read interrupts its core, so eight of them must do.
MAX_POLICIES = 8
# Per cent of the last ten seconds in which some, or all, tasks waited for memory.
WARN_PERCENT = 1.0
ROOT = Path("/")


@dataclass(frozen=True)
class State:
    """State of the machine at one moment.

    `power_source` is "mains", "battery" or "UPS", `thermal` one of THERMAL_LEVELS. `throttled`
    counts how often cores were slowed by heat since a Linux machine started. `memory_pressure`
    is "normal", "warn" or "critical".
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


def read_state() -> State:
    """State of this machine; on systems other than macOS and Linux only its load."""
    readers = {"Darwin": _read_macos, "Linux": _read_linux}
    known = readers.get(platform.system(), dict)()
    return State(load_1m=os.getloadavg()[0], **known)


def _read_macos() -> Mapping[str, Any]:
    with ThreadPoolExecutor(len(COMMANDS)) as pool:
        batt, settings, thermal, pressure = pool.map(output_of, COMMANDS)
    # The first line is "Now drawing from 'AC Power'".
    source = re.search(r"Now drawing from '([^']+)'", batt)
    charge = re.search(r"InternalBattery.*?(\d+)%", batt)
    # On Macs with three modes `powermode` is 1 for low and 2 for high power.
    mode = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d+)", settings, re.MULTILINE)
    level = re.search(rf"{re.escape(THERMAL_KEY)}\s+(\d+)", thermal)
    return {
        "power_source": POWER_SOURCES.get(source[1], source[1]) if source else None,
        "battery_percent": int(charge[1]) if charge else None,
        "low_power": mode[1] == "1" if mode else None,
        "thermal": NOTIFIED_LEVELS.get(level[1], f"level {level[1]}") if level else None,
        "memory_pressure": PRESSURE_LEVELS.get(pressure.strip()),
    }


def _read_linux() -> Mapping[str, Any]:
    cpus, supplies = ROOT / "sys/devices/system/cpu", ROOT / "sys/class/power_supply"
    governor = text_of(cpus / "cpu0/cpufreq/scaling_governor")
    driver = text_of(cpus / "cpu0/cpufreq/scaling_driver")
    profile = text_of(ROOT / "sys/firmware/acpi/platform_profile")
    charges = (number_in(supply / "capacity") for supply in _supplies(supplies, "Battery"))
    # On Intel's processors only.
    throttles = [number_in(p) for p in cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    counts = [count for count in throttles if count is not None]
    return {
        "power_source": _linux_power_source(supplies),
        "battery_percent": next((charge for charge in charges if charge is not None), None),
        "low_power": _linux_low_power(governor, driver, profile),
        "governor": governor,
        "throttled": sum(counts) if counts else None,
        "memory_pressure": _linux_memory_pressure(text_of(ROOT / "proc/pressure/memory") or ""),
        "cpu_mhz": _linux_cpu_mhz(cpus, text_of(ROOT / "proc/cpuinfo") or ""),
    }


def _linux_power_source(supplies: Path) -> str | None:
    """Mains if an adapter is on, battery if one discharges; None for a desktop."""
    if any(number_in(s / "online") == 1 for s in _supplies(supplies, "Mains", "USB")):
        return MAINS
    batteries = list(_supplies(supplies, "Battery"))
    if any(text_of(s / "status") == "Discharging" for s in batteries):
        return "battery"
    return MAINS if batteries else None


def _linux_low_power(governor: str | None, driver: str | None, profile: str | None) -> bool | None:
    """True with the platform's low-power profile or a governor that fixes the lowest clock.

    `powersave` does so, except with pstate drivers, where it is the default governor.
    """
    if governor is None and profile is None:
        return None
    lowest_clock = governor == "powersave" and "pstate" not in (driver or "")
    return lowest_clock or profile == "low-power"


def _linux_memory_pressure(pressure: str) -> str | None:
    """From the tasks that waited for memory in the last ten seconds (/proc/pressure/memory)."""
    average = {kind: float(v) for kind, v in re.findall(r"^(\w+) avg10=([\d.]+)", pressure, re.M)}
    if "some" not in average:
        return None
    if average["some"] < WARN_PERCENT:
        return "normal"
    return "critical" if average.get("full", 0.0) >= WARN_PERCENT else "warn"


def _linux_cpu_mhz(cpus: Path, cpuinfo: str) -> float | None:
    """Current clock, the mean of some cores."""
    policies = sorted(cpus.glob("cpufreq/policy*/scaling_cur_freq"))[:MAX_POLICIES]
    clocks = [khz / 1000 for path in policies if (khz := number_in(path))]
    if not clocks:
        clocks = [float(mhz) for mhz in re.findall(r"(?m)^cpu MHz\s*:\s*([\d.]+)", cpuinfo)]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def _supplies(folder: Path, *kinds: str) -> Iterator[Path]:
    """Power supplies of the machine; those of a mouse have the scope "Device"."""
    for supply in sorted(folder.glob("*")):
        if text_of(supply / "type") in kinds and text_of(supply / "scope") != "Device":
            yield supply


def warnings_between(before: State, after: State, threads: int = 0) -> dict[str, str]:
    """Reasons why a figure measured between two states may be off: kind -> sentence.

    `threads` is how many the measurement itself kept busy, now or in the minute before.
    """
    return {
        **dict(_power_warnings(before, after)),
        **dict(_heat_warnings(before, after)),
        **dict(_load_warnings(before, after, threads)),
    }


def _power_warnings(before: State, after: State) -> Iterator[tuple[str, str]]:
    first, last = before.power_source, after.power_source
    if first and last and first != last:
        change = f"from {first} to {last}"
        yield "mains", f"the power source changed {change} during the run: stay on mains"
    elif (source := first or last) not in (None, MAINS):
        yield "mains", f"the machine ran on {source}: plug it in"
    if slow := next((state for state in (before, after) if state.low_power), None):
        how = "switch it off in the system settings"
        if slow.governor == "powersave":
            how = "type sudo cpupower frequency-set -g performance"
        yield "low power", f"low power mode was on: {how}"


def _heat_warnings(before: State, after: State) -> Iterator[tuple[str, str]]:
    # The last of a kind counts.
    for when, level in (("after", after.thermal), ("before", before.thermal)):
        if level not in (None, NOMINAL):
            sentence = f"thermal pressure was {level}, not {NOMINAL}, {when} the run: let it cool"
            yield "thermal", sentence
    slowed = (after.throttled or 0) - (before.throttled or 0)
    if before.throttled is not None and slowed > 0:
        yield "throttled", f"the processor was slowed by heat {slowed} times: let it cool"


def _load_warnings(before: State, after: State, threads: int) -> Iterator[tuple[str, str]]:
    first, last = before.governor, after.governor
    if first and last and first != last:
        change = f"from {first} to {last}"
        yield "governor", f"the CPU's governor changed during the run ({change}): keep one"
    load = max(before.load_1m or 0.0, after.load_1m or 0.0)
    if load > threads + allowed_load():
        ours = f", {threads} of it ours" if threads else ""
        yield "load", f"other programs kept the machine busy (load {load:.1f}{ours}): close them"
    for level in (before.memory_pressure, after.memory_pressure):  # the last of a kind counts
        if level not in (None, "normal"):
            yield "memory", f"memory was short (pressure {level}): close other programs"


def allowed_load() -> float:
    return max(ALLOWED_LOAD, ALLOWED_LOAD_PER_CORE * (os.cpu_count() or 1))

"""The machine's state before and after a trial: what can make a figure worth less.

Nothing here needs root or takes longer than some 50 ms: the small programs that macOS is asked
run at the same time. What cannot be found out is None, and None is never a warning.
"""

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

# macOS without root. `ProcessInfo.thermalState` would hide the second level.
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
    """State of the machine at one moment.

    `power_source` is "mains", "battery" or "UPS", `thermal` one of THERMAL_LEVELS. `throttled`
    counts how often a core was slowed for its heat since the start of a Linux machine.
    `memory_pressure` is "normal", "warn" or "critical".
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


def read_state(system: str | None = None, run: Run = output_of, root: Path = Path("/")) -> State:
    """State of this machine; on others than macOS and Linux only the load is known."""
    readers = {"Darwin": lambda: _read_macos(run), "Linux": lambda: _read_linux(root)}
    known = readers.get(system or platform.system(), dict)()
    return State(load_1m=os.getloadavg()[0], **known)


def _read_macos(run: Run) -> Mapping[str, Any]:
    """Fields of `State`."""
    with ThreadPoolExecutor(len(COMMANDS)) as pool:
        batt, settings, thermal, pressure = pool.map(run, COMMANDS)
    # The first line is "Now drawing from 'AC Power'".
    source = re.search(r"Now drawing from '([^']+)'", batt)
    charge = re.search(r"InternalBattery.*?(\d+)%", batt)
    # `powermode` is 1 for low and 2 for high power where there are three.
    mode = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d+)", settings, re.MULTILINE)
    return {
        "power_source": POWER_SOURCES.get(source[1], source[1]) if source else None,
        "battery_percent": int(charge[1]) if charge else None,
        "low_power": mode[1] == "1" if mode else None,
        "thermal": _macos_thermal_level(thermal),
        "memory_pressure": PRESSURE_LEVELS.get(pressure.strip()),
    }


def _macos_thermal_level(answer: str) -> str | None:
    """From `notifyutil -g KEY`: the key and a number, of which an unknown one is not nominal."""
    match = re.search(rf"{re.escape(THERMAL_KEY)}\s+(\d+)", answer)
    levels = dict(enumerate(NOTIFIED_LEVELS))
    return levels.get(int(match[1]), f"level {match[1]}") if match else None


def _read_linux(root: Path) -> Mapping[str, Any]:
    """Fields of `State`."""
    cpus, supplies = root / "sys/devices/system/cpu", root / "sys/class/power_supply"
    governor = text_of(cpus / "cpu0/cpufreq/scaling_governor")
    driver = text_of(cpus / "cpu0/cpufreq/scaling_driver")
    profile = text_of(root / "sys/firmware/acpi/platform_profile")
    charges = (number_in(supply / "capacity") for supply in _supplies(supplies, "Battery"))
    # Of Intel's processors only.
    throttles = [number_in(p) for p in cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    counts = [count for count in throttles if count is not None]
    return {
        "power_source": _linux_power_source(supplies),
        "battery_percent": next((charge for charge in charges if charge is not None), None),
        "low_power": _linux_low_power(governor, driver, profile),
        "governor": governor,
        "throttled": sum(counts) if counts else None,
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


def _linux_low_power(governor: str | None, driver: str | None, profile: str | None) -> bool | None:
    """The platform's low-power profile, or a governor that keeps the clock down.

    With pstate drivers `powersave` is the ordinary governor; with others it pins the lowest clock.
    """
    if governor is None and profile is None:
        return None
    pinned = governor == "powersave" and "pstate" not in (driver or "")
    return pinned or profile == "low-power"


def _linux_memory_pressure(pressure: str) -> str | None:
    """From /proc/pressure/memory: tasks that waited for memory in the last ten seconds."""
    average = {kind: float(v) for kind, v in re.findall(r"^(\w+) avg10=([\d.]+)", pressure, re.M)}
    if "some" not in average:
        return None
    if average["some"] < WARN_PERCENT:
        return "normal"
    return "critical" if average.get("full", 0.0) >= WARN_PERCENT else "warn"


def _linux_cpu_mhz(cpus: Path, cpuinfo: str) -> float | None:
    """Mean clock of some cores at this moment."""
    policies = sorted(cpus.glob("cpufreq/policy*/scaling_cur_freq"))[:MAX_POLICIES]
    clocks = [khz / 1000 for path in policies if (khz := number_in(path))]
    if not clocks:
        clocks = [float(mhz) for mhz in re.findall(r"(?m)^cpu MHz\s*:\s*([\d.]+)", cpuinfo)]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def _supplies(folder: Path, *kinds: str) -> Iterator[Path]:
    """Power supplies of the machine; the battery of a mouse has the scope "Device"."""
    for supply in sorted(folder.glob("*")):
        if text_of(supply / "type") in kinds and text_of(supply / "scope") != "Device":
            yield supply


def warnings_between(before: State, after: State, threads: int = 0) -> dict[str, str]:
    """Why a figure measured between two moments may be off: kind -> sentence with what to do.

    `threads` is how many the measurement itself kept busy, here or in the minute before.
    """
    found = {
        "mains": _power(before.power_source, after.power_source),
        "low power": _low_power(before) or _low_power(after),
        "thermal": _thermal(before, "before") or _thermal(after, "after"),
        "throttled": _throttled(before.throttled, after.throttled),
        "governor": _governor(before.governor, after.governor),
        "load": _load(max(before.load_1m or 0.0, after.load_1m or 0.0), threads),
        "memory": _memory(after) or _memory(before),
    }
    return {kind: sentence for kind, sentence in found.items() if sentence is not None}


def _power(before: str | None, after: str | None) -> str | None:
    if before and after and before != after:
        return f"the power source changed from {before} to {after} during the run: stay on mains"
    source = before or after
    return None if source in (None, MAINS) else f"the machine ran on {source}: plug it in"


def _low_power(state: State) -> str | None:
    if not state.low_power:
        return None
    if state.governor == "powersave":
        return "low power mode was on: type sudo cpupower frequency-set -g performance"
    return "low power mode was on: switch it off in the system settings"


def _thermal(state: State, when: str) -> str | None:
    if state.thermal in (None, NOMINAL):
        return None
    return f"thermal pressure was {state.thermal}, not {NOMINAL}, {when} the run: let it cool"


def _throttled(before: int | None, after: int | None) -> str | None:
    if before is None or after is None or after <= before:
        return None
    return f"the processor was slowed for its heat {after - before} times: let it cool"


def _governor(before: str | None, after: str | None) -> str | None:
    if before in (None, after) or after is None:
        return None
    return f"the CPU's governor changed during the run (from {before} to {after}): keep one"


def _load(load: float, threads: int) -> str | None:
    if load <= threads + allowed_load():
        return None
    ours = f", {threads} of it ours" if threads else ""
    return f"other programs kept the machine busy (load {load:.1f}{ours}): close them"


def allowed_load(cores: int | None = None) -> float:
    """Load that other programs may make, by default on the cores of this machine."""
    return max(ALLOWED_LOAD, ALLOWED_LOAD_PER_CORE * (cores or os.cpu_count() or 1))


def _memory(state: State) -> str | None:
    if state.memory_pressure in (None, "normal"):
        return None
    return f"memory was short (pressure {state.memory_pressure}): close other programs"

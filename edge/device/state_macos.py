"""What macOS tells about its state without root, through its own small programs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from edge.device.shell import Run

# The levels of OSThermalNotification.h; `ProcessInfo.thermalState` would hide the second.
THERMAL_KEY = "com.apple.system.thermalpressurelevel"
THERMAL_LEVELS = ("nominal", "moderate", "heavy", "trapping", "sleeping")
PRESSURE_LEVELS = {"1": "normal", "2": "warn", "4": "critical"}
COMMANDS: tuple[Sequence[str], ...] = (
    ("pmset", "-g", "batt"),
    ("pmset", "-g"),
    ("notifyutil", "-g", THERMAL_KEY),
    ("sysctl", "-n", "kern.memorystatus_vm_pressure_level"),
)
SOURCES = {"AC Power": "mains", "Battery Power": "battery", "UPS Power": "UPS"}


def look(run: Run) -> Mapping[str, Any]:
    """Fields of `State`. An Apple chip's frequency is nobody's to know without root."""
    with ThreadPoolExecutor(len(COMMANDS)) as pool:
        batt, settings, thermal, pressure = pool.map(run, COMMANDS)
    return {
        "power_source": power_source(batt),
        "battery_percent": battery_percent(batt),
        "low_power": low_power(settings),
        "thermal": thermal_level(thermal),
        "memory_pressure": PRESSURE_LEVELS.get(pressure.strip()),
    }


def power_source(batt: str) -> str | None:
    """From `pmset -g batt`, whose first line is "Now drawing from 'AC Power'"."""
    match = re.search(r"Now drawing from '([^']+)'", batt)
    return SOURCES.get(match[1], match[1]) if match else None


def battery_percent(batt: str) -> int | None:
    """Charge of the built-in battery; None for a Mac without one."""
    match = re.search(r"InternalBattery.*?(\d+)%", batt)
    return int(match[1]) if match else None


def low_power(settings: str) -> bool | None:
    """From `pmset -g`: `lowpowermode 1`, or `powermode 1` where there are three (2 is high)."""
    match = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d+)", settings, re.MULTILINE)
    return match[1] == "1" if match else None


def thermal_level(answer: str) -> str | None:
    """From `notifyutil -g KEY`, which prints the key and a number.

    A number that is not in the header is named as it is, so that it counts as not nominal.
    """
    match = re.search(rf"{re.escape(THERMAL_KEY)}\s+(\d+)", answer)
    if match is None:
        return None
    level = int(match[1])
    return THERMAL_LEVELS[level] if level < len(THERMAL_LEVELS) else f"level {level}"

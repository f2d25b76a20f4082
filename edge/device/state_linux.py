"""What Linux tells about its state in /proc and /sys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edge.device.files import number_in, text_of

# Reading a frequency asks the core itself; eight are enough to see a slow machine.
MAX_POLICIES = 8
# Per cent of the last ten seconds in which some, or all, tasks waited for memory.
WARN_PERCENT = 1.0


def look(root: Path) -> Mapping[str, Any]:
    """Fields of `State`."""
    cpus = root / "sys/devices/system/cpu"
    governor = text_of(cpus / "cpu0/cpufreq/scaling_governor")
    driver = text_of(cpus / "cpu0/cpufreq/scaling_driver")
    return {
        "power_source": power_source(root / "sys/class/power_supply"),
        "battery_percent": battery_percent(root / "sys/class/power_supply"),
        "low_power": low_power(
            governor, driver, text_of(root / "sys/firmware/acpi/platform_profile")
        ),
        "governor": governor,
        "throttled": throttled(cpus),
        "memory_pressure": memory_pressure(text_of(root / "proc/pressure/memory") or ""),
        "cpu_mhz": cpu_mhz(cpus, text_of(root / "proc/cpuinfo") or ""),
    }


def power_source(supplies: Path) -> str | None:
    """Mains where an adapter is on, battery where one discharges; None for a plain desktop."""
    if any(number_in(s / "online") == 1 for s in _supplies(supplies, "Mains", "USB")):
        return "mains"
    batteries = list(_supplies(supplies, "Battery"))
    if any(text_of(s / "status") == "Discharging" for s in batteries):
        return "battery"
    return "mains" if batteries else None


def battery_percent(supplies: Path) -> int | None:
    """Charge of the first battery."""
    charges = (number_in(s / "capacity") for s in _supplies(supplies, "Battery"))
    return next((charge for charge in charges if charge is not None), None)


def low_power(governor: str | None, driver: str | None, profile: str | None) -> bool | None:
    """The platform's low-power profile, or a governor that keeps the clock down.

    With intel_pstate and amd-pstate in active mode the governor `powersave` is the ordinary one
    and raises the clock under load; with every other driver it pins the lowest.
    """
    if governor is None and profile is None:
        return None
    pinned = governor == "powersave" and "pstate" not in (driver or "")
    return pinned or profile == "low-power"


def throttled(cpus: Path) -> int | None:
    """How often cores were slowed for their heat since the machine started (Intel only)."""
    counts = [number_in(p) for p in cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def memory_pressure(pressure: str) -> str | None:
    """From /proc/pressure/memory: tasks that waited for memory in the last ten seconds."""
    average = {kind: float(v) for kind, v in re.findall(r"^(\w+) avg10=([\d.]+)", pressure, re.M)}
    if "some" not in average:
        return None
    if average.get("full", 0.0) >= WARN_PERCENT:
        return "critical"
    return "warn" if average["some"] >= WARN_PERCENT else "normal"


def cpu_mhz(cpus: Path, cpuinfo: str) -> float | None:
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

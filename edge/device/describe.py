"""The machine a profile was measured on, without anything that names its owner."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

TRADEMARKS = re.compile(r"\((R|TM|C)\)", re.IGNORECASE)


@dataclass(frozen=True)
class Device:
    """Chip, cores, memory and system. No host name, user name or serial number."""

    name: str
    architecture: str
    physical_cores: int
    logical_cores: int
    memory_bytes: int
    os: str


def describe_device() -> Device:
    """Look at this machine."""
    return Device(
        name=chip_name(),
        architecture=platform.machine(),
        physical_cores=psutil.cpu_count(logical=False) or 1,
        logical_cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        os=operating_system(),
    )


def usable_cores() -> int:
    """Physical cores that this process may run on: a container or taskset can allow fewer."""
    physical = psutil.cpu_count(logical=False) or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return min(physical, len(os.sched_getaffinity(0)))
    return physical


def chip_name() -> str:
    """The processor's marketing name, such as "Apple M2 Max"."""
    raw = _sysctl_brand() if sys.platform == "darwin" else _cpuinfo_model()
    return " ".join(TRADEMARKS.sub("", raw or platform.processor() or "unknown CPU").split())


def operating_system() -> str:
    """Name and version, such as "macOS 27.0 (26A428)" or "Linux 6.1.0"."""
    if sys.platform == "darwin":
        build = _output_of("sysctl", "-n", "kern.osversion")
        return f"macOS {platform.mac_ver()[0]} ({build})"
    return f"{platform.system()} {platform.release().split('-')[0]}"


def _sysctl_brand() -> str:
    return _output_of("sysctl", "-n", "machdep.cpu.brand_string")


def _cpuinfo_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else ""


def _output_of(*command: str) -> str:
    """Standard output of a small system command, empty if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()

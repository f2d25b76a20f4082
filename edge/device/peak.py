"""The most memory that this process has had, in the measure that fits its system.

ru_maxrss is neither: on macOS it misses Metal's buffers, on Linux it begins with the parent's
memory at the time of the start.
"""

import ctypes
import os
import platform
import re
import resource
import struct
from pathlib import Path

from edge.device.system import text_of

MACOS, LINUX, OTHER = "lifetime maximum physical footprint", "VmHWM", "ru_maxrss"
RUSAGE_INFO_V4 = 4
# struct rusage_info_v4 of macOS's <sys/resource.h>: a UUID of 16 bytes, then 35 uint64, of which
# ri_lifetime_max_phys_footprint is number 28.
V4_BYTES, LIFETIME_MAX_OFFSET = 16 + 35 * 8, 16 + 28 * 8


def peak_metric() -> str:
    """Name of what `peak_bytes` gives here."""
    return {"Darwin": MACOS, "Linux": LINUX}.get(platform.system(), OTHER)


def peak_bytes() -> int:
    """The most memory this process has had; on macOS with what it allocated for the GPU."""
    on_mac = platform.system() == "Darwin"
    found = _footprint_bytes() if on_mac else _resident_bytes()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found or (peak if on_mac else peak * 1024)  # the unit differs by system


def _footprint_bytes() -> int | None:
    """The highest value of what Activity Monitor calls memory."""
    info = ctypes.create_string_buffer(V4_BYTES)
    try:
        system = ctypes.CDLL("/usr/lib/libSystem.B.dylib")
    except OSError:
        return None
    if system.proc_pid_rusage(os.getpid(), RUSAGE_INFO_V4, ctypes.byref(info)) != 0:
        return None
    return int(struct.unpack_from("<Q", info.raw, LIFETIME_MAX_OFFSET)[0])


def _resident_bytes() -> int | None:
    status = text_of(Path("/proc/self/status")) or ""
    match = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else None

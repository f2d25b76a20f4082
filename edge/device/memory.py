"""Free memory of the device, memory kept resident, and the peak of this process.

Main memory, and all memory of a Mac, is shared by all programs. Available memory includes the
file cache that the system can take back. macOS goes beyond it by compressing and swapping the
memory of other programs; Linux without swap, and a container at its limit, kill.
"""

import ctypes
import os
import platform
import re
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import psutil

from edge.device.system import number_in, text_of

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
# Version 1 of control groups writes the largest whole number of pages where there is no limit.
UNLIMITED_BYTES = 1 << 60
FIRST_MACOS_THAT_WIRES = 15
RUSAGE_INFO_V4 = 4
# struct rusage_info_v4 of macOS's <sys/resource.h>: a UUID of 16 bytes, then 35 uint64, of which
# ri_lifetime_max_phys_footprint is number 28.
V4_BYTES, LIFETIME_MAX_OFFSET = 16 + 35 * 8, 16 + 28 * 8


@dataclass(frozen=True)
class MemoryRoom:
    """Memory that a program can still allocate.

    `bytes` are free now. `most_bytes` is the limit with swapping and compression: beyond it
    allocations fail or the system kills. `what` completes "4.1 GB of ...".
    """

    bytes: int
    most_bytes: int
    what: str


def available_bytes() -> MemoryRoom:
    if mx.default_device().type != mx.DeviceType.gpu:
        return _main_memory()
    if mx.metal.is_available():
        return _metal_memory()
    # MLX frees the buffers that it caches when it needs memory.
    free = int(mx.device_info()["free_memory"]) + mx.get_cache_memory()
    return MemoryRoom(free, free, "GPU memory")


@contextmanager
def wired(need_bytes: int) -> Iterator[None]:
    """Keep this many bytes of MLX's buffers resident on Metal while the block runs.

    Otherwise macOS may page a model out between tokens. mlx-lm wires the recommended maximum for
    any model: 10 of 16 GB for a model of 0.7 GB (exo-explore/exo#1672). Does nothing before
    macOS 15 and on other systems. An inner block never lowers the limit.
    """
    if not _can_wire():
        yield
        return
    wanted = min(need_bytes, _recommended_bytes())
    before = mx.set_wired_limit(wanted)
    try:
        if before > wanted:
            mx.set_wired_limit(before)
        yield
    finally:
        try:
            mx.synchronize()  # pending work still reads wired buffers
        finally:
            mx.set_wired_limit(before)


def _can_wire() -> bool:
    if platform.system() != "Darwin" or not mx.metal.is_available():
        return False
    major = platform.mac_ver()[0].split(".")[0]
    return major.isdecimal() and int(major) >= FIRST_MACOS_THAT_WIRES


def _recommended_bytes() -> int:
    return int(mx.device_info()["max_recommended_working_set_size"])


def _metal_memory() -> MemoryRoom:
    """The GPU's share, or less where other programs use the shared memory."""
    share = _recommended_bytes() - mx.get_active_memory()
    free = psutil.virtual_memory().available
    if free < share:
        return MemoryRoom(free, share, "memory that other programs leave")
    return MemoryRoom(share, share, "the GPU's share of memory")


def _main_memory() -> MemoryRoom:
    memory = psutil.virtual_memory()
    if platform.system() == "Darwin":  # it compresses the memory of other programs
        return MemoryRoom(memory.available, memory.total, "memory")
    swap = psutil.swap_memory().free
    room = MemoryRoom(memory.available, memory.available + swap, "memory")
    group = min(_group_rooms(), default=room.bytes)
    return room if group >= room.bytes else MemoryRoom(group, group, "this container's memory")


def _group_rooms() -> Iterator[int]:
    """Bytes left in the limited control groups of this process and in their parents.

    Version 2 lists "0::/PATH", version 1 "5:memory:/PATH" below its own folder. A container may
    see its own group as the root whatever the path says.
    """
    for line in (text_of(MEMBERSHIP) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.strip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(top):
                yield from _group_room(place, *names)


def _group_room(folder: Path, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    limit_bytes, used_bytes = number_in(folder / limit), number_in(folder / used)
    if limit_bytes is None or used_bytes is None or limit_bytes >= UNLIMITED_BYTES:
        return
    fields = (line.split() for line in (text_of(folder / "memory.stat") or "").splitlines())
    reclaimable_bytes = {name: int(value) for name, value in fields}.get(reclaimable, 0)
    yield max(0, limit_bytes - max(0, used_bytes - reclaimable_bytes))


def peak_metric() -> str:
    names = {"Darwin": "lifetime maximum physical footprint", "Linux": "VmHWM"}
    return names.get(platform.system(), "ru_maxrss")


def peak_bytes() -> int:
    """The most memory this process has had; on macOS with what it allocated for the GPU.

    Not ru_maxrss: on macOS it misses Metal's buffers, on Linux it begins with the memory of the
    parent at the time of the start.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the unit differs by system
    if platform.system() == "Darwin":
        return _footprint_bytes() or peak
    status = text_of(Path("/proc/self/status")) or ""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return 1024 * (int(found[1]) if found else peak)


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

"""How much memory this device can still give, and keeping a model's part of it resident.

A CPU's memory and a Mac's are shared by all programs. What the system calls available counts the
pages that it can take back from its file cache. macOS goes on beyond that, compressing and
swapping what other programs hold; Linux without swap, and a container at its limit, kill.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import psutil

from edge.device.system import number_in, text_of

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
# Version 1 writes the largest whole number of pages where there is no limit.
UNLIMITED_BYTES = 1 << 60
FIRST_MACOS_THAT_WIRES = 15


@dataclass(frozen=True)
class MemoryRoom:
    """Memory that a program may still take.

    `bytes` are free now. `most_bytes` there can be where the system swaps or compresses: beyond
    it allocations fail or the system kills. `what` completes "4.1 GB of ...".
    """

    bytes: int
    most_bytes: int
    what: str


def available_bytes() -> MemoryRoom:
    """Room in the memory that MLX's default device computes in."""
    if mx.default_device().type != mx.DeviceType.gpu:
        return _main_memory()
    if mx.metal.is_available():
        return _metal_memory()
    # Buffers that MLX keeps to use again are its own to give.
    free = int(mx.device_info()["free_memory"]) + mx.get_cache_memory()
    return MemoryRoom(free, free, "GPU memory")


@contextmanager
def wired(need_bytes: int) -> Iterator[None]:
    """Keep this many bytes of MLX's buffers resident on Metal while the block runs.

    Without it macOS may page a model out between tokens. mlx-lm wires all that is recommended
    for any model, which has taken 10 of 16 GB for a model of 0.7 GB (exo-explore/exo#1672).
    Before macOS 15 and elsewhere it does nothing. An inner block never lowers the limit.
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
            mx.synchronize()  # work under way still reads what is wired
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
    """The GPU's share, or what all programs leave of the memory they have in common."""
    share = _recommended_bytes() - mx.get_active_memory()
    free = psutil.virtual_memory().available
    if free < share:
        return MemoryRoom(free, share, "memory that other programs leave")
    return MemoryRoom(share, share, "the GPU's share of memory")


def _main_memory() -> MemoryRoom:
    memory = psutil.virtual_memory()
    if platform.system() == "Darwin":  # makes room by compressing what others hold
        return MemoryRoom(memory.available, memory.total, "memory")
    swap = psutil.swap_memory().free
    room = MemoryRoom(memory.available, memory.available + swap, "memory")
    group = min(_group_rooms(), default=room.bytes)
    return room if group >= room.bytes else MemoryRoom(group, group, "this container's memory")


def _group_rooms() -> Iterator[int]:
    """Bytes left in the limited control groups of this process and those around them.

    Version 2 lists "0::/PATH", version 1 "5:memory:/PATH", below a folder of its own. A container
    may see its own group as the root whatever the path says.
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

"""How much memory this device can still give, and keeping a model's part of it resident.

A CPU's memory and a Mac's are what all programs share. What the system calls available counts
the pages that it can take back from its file cache. macOS goes on beyond that, compressing and
swapping what other programs hold; Linux without swap, and a container at its limit, kill.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import psutil

from edge.device.system import text_of

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
# Version 1 writes the largest whole number of pages where there is no limit.
UNLIMITED_BYTES = 1 << 60
FIRST_MACOS_THAT_WIRES = 15


@dataclass(frozen=True)
class MemoryRoom:
    """What a program may still take.

    Attributes:
        bytes: what is free now.
        most_bytes: what there can be at most while other programs stay: above `bytes` where
            the system makes room by swapping or compressing. Beyond it allocations fail or the
            system kills.
        what: what is counted, in words that complete "4.1 GB of ...".
    """

    bytes: int
    most_bytes: int
    what: str


@dataclass(frozen=True)
class _Group:
    """A control group's limit and what its processes hold that cannot be taken back."""

    limit_bytes: int
    used_bytes: int


def available_bytes() -> MemoryRoom:
    """Look at the memory that MLX's default device computes in."""
    if mx.default_device().type != mx.DeviceType.gpu:
        return _main_memory()
    if mx.metal.is_available():
        return _metal_memory()
    info = mx.device_info()
    free = int(info["free_memory"])
    # Buffers that MLX keeps to use again are its own to give.
    return MemoryRoom(free + mx.get_cache_memory(), free + mx.get_cache_memory(), "GPU memory")


@contextmanager
def wired(need_bytes: int) -> Iterator[None]:
    """Keep so many bytes of MLX's buffers resident on Metal while the block runs.

    Without it macOS may page a model out between tokens. mlx-lm wires all that is recommended
    for any model, which has taken 10 of 16 GB for a model of 0.7 GB (exo-explore/exo#1672); this
    wires what is needed. Where nothing can be wired, before macOS 15 or elsewhere, it does
    nothing. Within another such block the limit is never lowered.

    Args:
        need_bytes: weights, cache and working memory; capped by what the system recommends.
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
    for group in _groups(CGROUPS, MEMBERSHIP):
        left = max(0, group.limit_bytes - group.used_bytes)
        if left < room.bytes:
            room = MemoryRoom(left, left, "this container's memory")
    return room


def _groups(root: Path, membership: Path) -> Iterator[_Group]:
    """The limited control groups that this process is in, those around them included.

    Version 2 lists "0::/PATH"; version 1 "5:memory:/PATH", below a folder of its own. A
    container may see its own group as the root whatever the path says.
    """
    for line in (text_of(membership) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.strip("/")
        for place in (folder, *folder.parents):
            group = _group(place, *names)
            if group is not None:
                yield group
            if place == top:
                break


def _group(folder: Path, limit_name: str, used_name: str, reclaimable_name: str) -> _Group | None:
    limit, used = text_of(folder / limit_name) or "", text_of(folder / used_name) or ""
    if not limit.isdecimal() or not used.isdecimal() or int(limit) >= UNLIMITED_BYTES:
        return None
    fields = (line.split() for line in (text_of(folder / "memory.stat") or "").splitlines())
    reclaimable = {name: int(value) for name, value in fields}.get(reclaimable_name, 0)
    return _Group(int(limit), max(0, int(used) - reclaimable))

"""Room on every kind of device, by stand-ins for the ones that are not here."""

import ctypes
import resource
import struct
from types import SimpleNamespace

import psutil
import pytest

from edge.device import memory, peak
from edge.device.memory import available_bytes, wired

GB = 10**9


class FakeMlx:
    """MLX on a device that is not here: answers, and what was asked of it in order."""

    DeviceType = SimpleNamespace(cpu="cpu", gpu="gpu")

    def __init__(self, device="gpu", metal=True, active=0, cached=0, **info):
        self.device, self.active, self.cached, self.info = device, active, cached, info
        self.metal = SimpleNamespace(is_available=lambda: metal)
        self.limit, self.calls = 0, []

    def default_device(self):
        return SimpleNamespace(type=self.device)

    def device_info(self):
        return self.info

    def get_active_memory(self):
        return self.active

    def get_cache_memory(self):
        return self.cached

    def set_wired_limit(self, limit):
        assert 0 <= limit <= self.info["max_recommended_working_set_size"]  # MLX raises
        before, self.limit = self.limit, limit
        self.calls.append(("wire", limit))
        return before

    def synchronize(self):
        self.calls.append(("synchronize",))


@pytest.fixture
def machine(monkeypatch):
    """Become another machine."""

    def become(mlx, system="Darwin", release="15.1", available=50 * GB, swap=0):
        monkeypatch.setattr(memory, "mx", mlx)
        monkeypatch.setattr(memory.platform, "system", lambda: system)
        monkeypatch.setattr(memory.platform, "mac_ver", lambda: (release, ("", "", ""), ""))
        main = SimpleNamespace(available=available, total=64 * GB)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: main)
        monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=swap))
        return mlx

    return become


def mac(**changes):
    return FakeMlx(**{"max_recommended_working_set_size": 48 * GB, **changes})


OTHERS = "memory that other programs leave"
CUDA = FakeMlx(metal=False, cached=GB, free_memory=9 * GB, total_memory=80 * GB)

# --- room


@pytest.mark.parametrize(
    ("mlx", "system", "available", "expected"),
    [
        # The GPU's share, less what is active; no more than others leave, but it can make room.
        (mac(active=8 * GB), "Darwin", 50 * GB, (40 * GB, 40 * GB, "the GPU's share of memory")),
        (mac(active=8 * GB), "Darwin", 5 * GB, (5 * GB, 40 * GB, OTHERS)),
        # Free memory and what MLX keeps.
        (CUDA, "Linux", 50 * GB, (10 * GB, 10 * GB, "GPU memory")),
        (FakeMlx("cpu"), "Darwin", 5 * GB, (5 * GB, 64 * GB, "memory")),
    ],
)
def test_room_on_a_device(machine, mlx, system, available, expected):
    machine(mlx, system, available=available)
    room = available_bytes()
    assert (room.bytes, room.most_bytes, room.what) == expected


@pytest.fixture
def linux(machine, monkeypatch, tmp_path):
    """A Linux CPU with 50 GB free, whose control groups are files of the test."""
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")

    def become(membership, groups, **changes):
        machine(FakeMlx("cpu"), "Linux", **changes)
        (tmp_path / "membership").write_text(membership)
        for name, content in groups.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return available_bytes()

    return become


V2 = {"memory.max": f"{4 * GB}\n", "memory.current": f"{3 * GB}\n"}
V1 = {"memory.limit_in_bytes": f"{4 * GB}", "memory.usage_in_bytes": f"{3 * GB}"}
NO_LIMIT = {"memory.max": "max\n", "memory.current": "5\n"}


def inside(folder, files):
    return {f"{folder}/{name}": content for name, content in files.items()}


@pytest.mark.parametrize(
    ("membership", "groups", "left_gb"),
    [
        ("0::/\n", V2, 1),
        ("0::/user/app\n", inside("user", V2) | inside("user/app", NO_LIMIT), 1),
        ("0::/not/mounted/here\n", V2, 1),
        ("9:cpu:/x\n4:memory:/box\n0::/\n", inside("memory/box", V1), 1),
        ("4:cpu,memory:/box\n", inside("memory/box", V1), 1),
        ("0::/\n", NO_LIMIT, 50),
        ("4:memory:/\n", inside("memory", {**V1, "memory.limit_in_bytes": str(2**63 - 4096)}), 50),
        ("4:cpu:/\n", V2, 50),
        ("0::/\n", {**V2, "memory.max": str(60 * GB)}, 50),
        ("0::/\n", {**V2, "memory.current": str(5 * GB)}, 0),  # over its limit
        ("0::/\n", V2 | {"memory.stat": f"anon 12\ninactive_file {2 * GB}\n"}, 3),  # file pages
    ],
)
def test_a_container_has_what_its_limit_leaves(linux, membership, groups, left_gb):
    room = linux(membership, groups, swap=3 * GB)
    limited = left_gb != 50
    most_gb = left_gb if limited else 53  # without a group's limit Linux swaps before it kills
    assert (room.bytes, room.most_bytes) == (left_gb * GB, most_gb * GB)
    assert ("container" in room.what) is limited


# --- wiring


def test_what_is_needed_is_wired_and_let_go_after_the_last_work(machine):
    mlx = machine(mac())
    with wired(3 * GB):
        assert mlx.limit == 3 * GB
    assert mlx.calls == [("wire", 3 * GB), ("synchronize",), ("wire", 0)]
    with wired(5 * GB):
        with wired(GB):  # an inner block adds but never takes away
            assert mlx.limit == 5 * GB
        with pytest.raises(GeneratorExit), wired(100 * GB):
            assert mlx.limit == 48 * GB  # as much as the system recommends
            raise GeneratorExit
        assert mlx.limit == 5 * GB
    assert mlx.limit == 0


@pytest.mark.parametrize(
    ("mlx", "system", "release"),
    [
        (mac(), "Darwin", "14.6.1"),
        (mac(), "Darwin", ""),
        (FakeMlx("cpu", metal=False), "Darwin", "15.0"),
        (FakeMlx(metal=False), "Linux", ""),
    ],
)
def test_elsewhere_nothing_is_wired(machine, mlx, system, release):
    machine(mlx, system, release)
    with wired(3 * GB):
        pass
    assert mlx.calls == []


# --- the most that a process had


def test_on_linux_the_peak_is_this_programs_own():
    assert peak.peak_metric() == "VmHWM"
    held = bytearray(64 << 20)
    assert 64 << 20 < peak.peak_bytes() < 1 << 40
    del held


@pytest.mark.parametrize(("status", "expected"), [(0, 5_000_000_000), (-1, None)])
def test_on_a_mac_the_peak_is_the_footprint_else_resident_memory(monkeypatch, status, expected):
    """The call fills the structure as macOS does, or fails."""

    def proc_pid_rusage(pid, flavour, info):
        assert flavour == 4
        fields = [*range(28), 5_000_000_000, *range(29, 35)]
        ctypes.memmove(info, struct.pack("<16s35Q", b"uuid", *fields), 16 + 35 * 8)
        return status

    library = SimpleNamespace(proc_pid_rusage=proc_pid_rusage)
    monkeypatch.setattr(peak.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(peak.ctypes, "CDLL", lambda name: library)
    assert peak.peak_metric() == "lifetime maximum physical footprint"
    resident_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there
    assert peak.peak_bytes() == (expected or resident_bytes)

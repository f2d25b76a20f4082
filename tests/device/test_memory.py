"""Free, wired and peak memory, on fakes of the devices that are not here."""

import ctypes
import resource
import struct
from types import SimpleNamespace

import psutil
import pytest

from edge.device import memory
from edge.device.memory import available_bytes, peak_bytes, peak_metric, wired
from tests.device.conftest import write_files

GB = 10**9


class FakeMlx:
    """MLX on another device; `calls` has what changed its state, in order."""

    DeviceType = SimpleNamespace(cpu="cpu", gpu="gpu")

    def __init__(self, device="gpu", metal=True, active=0, cached=0, **info):
        self.metal = SimpleNamespace(is_available=lambda: metal)
        self.default_device = lambda: SimpleNamespace(type=device)
        self.device_info = lambda: info
        self.get_active_memory = lambda: active
        self.get_cache_memory = lambda: cached
        self.limit, self.calls = 0, []

    def set_wired_limit(self, limit):
        assert 0 <= limit <= self.device_info()["max_recommended_working_set_size"]  # as in MLX
        before, self.limit = self.limit, limit
        self.calls.append(("wire", limit))
        return before

    def synchronize(self):
        self.calls.append(("synchronize",))


@pytest.fixture
def machine(monkeypatch):
    """machine(mlx, system, ...): replaces this one; returns its `mlx`."""

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


@pytest.mark.parametrize(
    ("mlx", "system", "available", "expected"),
    [
        # The GPU's share without what is active, or what other programs leave.
        (mac(active=8 * GB), "Darwin", 50 * GB, (40 * GB, 40 * GB, "the GPU's share of memory")),
        (mac(active=8 * GB), "Darwin", 5 * GB, (5 * GB, 40 * GB, OTHERS)),
        # Free memory and what MLX caches.
        (CUDA, "Linux", 50 * GB, (10 * GB, 10 * GB, "GPU memory")),
        (FakeMlx("cpu"), "Darwin", 5 * GB, (5 * GB, 64 * GB, "memory")),
    ],
)
def test_the_free_memory_of_a_device(machine, mlx, system, available, expected):
    machine(mlx, system, available=available)
    room = available_bytes()
    assert (room.bytes, room.most_bytes, room.what) == expected


V2 = {"memory.max": 4 * GB, "memory.current": 3 * GB}
V1 = {"memory.limit_in_bytes": 4 * GB, "memory.usage_in_bytes": 3 * GB}
NO_LIMIT = {"memory.max": "max", "memory.current": 5}


def inside(folder, files):
    return {f"{folder}/{name}": content for name, content in files.items()}


@pytest.mark.parametrize(
    ("membership", "groups", "left_gb"),
    [
        ("0::/", V2, 1),
        ("0::/user/app", inside("user", V2) | inside("user/app", NO_LIMIT), 1),
        ("0::/not/mounted/here", V2, 1),
        ("9:cpu:/x\n4:pids,memory:/box\n0::/", inside("memory/box", V1), 1),
        ("0::/", NO_LIMIT, 50),
        ("4:memory:/", inside("memory", {**V1, "memory.limit_in_bytes": 2**63 - 4096}), 50),
        ("4:cpu:/", V2, 50),
        ("0::/", {**V2, "memory.current": 5 * GB}, 0),  # over its limit
        ("0::/", V2 | {"memory.stat": f"anon 12\ninactive_file {2 * GB}"}, 3),  # file cache
    ],
)
def test_a_container_is_limited_by_its_groups(
    machine, monkeypatch, tmp_path, membership, groups, left_gb
):
    machine(FakeMlx("cpu"), "Linux", swap=3 * GB)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    write_files(tmp_path, {"membership": membership, **inside("cgroup", groups)})
    room = available_bytes()
    limited = left_gb != 50
    most_gb = left_gb if limited else 53  # with swap
    assert (room.bytes, room.most_bytes) == (left_gb * GB, most_gb * GB)
    assert ("container" in room.what) is limited


# --- wiring


def test_memory_is_wired_for_a_block_until_its_work_is_done(machine):
    mlx = machine(mac())
    with wired(3 * GB):
        assert mlx.limit == 3 * GB
    assert mlx.calls == [("wire", 3 * GB), ("synchronize",), ("wire", 0)]
    with wired(5 * GB):
        with wired(GB):  # an inner block never lowers the limit
            assert mlx.limit == 5 * GB
        with pytest.raises(GeneratorExit), wired(100 * GB):
            assert mlx.limit == 48 * GB  # the recommended maximum
            raise GeneratorExit
        assert mlx.limit == 5 * GB
    assert mlx.limit == 0


@pytest.mark.parametrize(
    ("mlx", "system", "release"),
    [
        (mac(), "Darwin", "14.6.1"),
        (mac(metal=False), "Darwin", "15.0"),
        (mac(), "Linux", ""),
    ],
)
def test_nothing_is_wired_elsewhere(machine, mlx, system, release):
    machine(mlx, system, release)
    with wired(3 * GB):
        pass
    assert mlx.calls == []


# --- peak


def test_the_peak_on_linux_is_resident_memory():
    assert peak_metric() == "VmHWM"
    held = bytearray(64 << 20)
    assert 64 << 20 < peak_bytes() < 1 << 40
    del held


@pytest.mark.parametrize(("status", "expected"), [(0, 5_000_000_000), (-1, None)])
def test_the_peak_on_a_mac_is_the_footprint_or_resident_memory(monkeypatch, status, expected):
    def proc_pid_rusage(pid, flavour, info):
        assert flavour == 4
        fields = [*range(28), 5_000_000_000, *range(29, 35)]
        ctypes.memmove(info, struct.pack("<16s35Q", b"uuid", *fields), 16 + 35 * 8)
        return status

    library = SimpleNamespace(proc_pid_rusage=proc_pid_rusage)
    monkeypatch.setattr(memory.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    assert peak_metric() == "lifetime maximum physical footprint"
    resident_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there
    assert peak_bytes() == (expected or resident_bytes)

"""Bandwidth: measured, and from the chip table."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from edge.device import bandwidth, chips, describe
from edge.device.bandwidth import MIN_PASSES, measure_bandwidth
from edge.device.chips import find_chip, last_level_cache_bytes
from edge.device.describe import Bandwidth
from edge.errors import EdgeError
from tests.device.conftest import write_files

MIB = 1 << 20


def test_this_machine_moves_bytes(monkeypatch):
    monkeypatch.setattr(bandwidth, "BUDGET_S", 0.0)
    monkeypatch.setattr(bandwidth, "SMALLEST_TOTAL_BYTES", 12 * MIB)
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: None)
    bytes_s, how = measure_bandwidth(threads=1)
    assert 1e7 < bytes_s < 1e13
    assert f"best of {MIN_PASSES} passes, 1 threads, 12 MiB" in how


def test_bytes_are_counted_as_by_stream_and_passes_fill_the_budget(monkeypatch):
    """The clock advances by 1 s per call, so each kernel takes 1 s and the size is the rate."""
    seconds = iter(range(1000))
    clock = SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    monkeypatch.setattr(bandwidth, "time", clock)
    monkeypatch.setattr(bandwidth, "BUDGET_S", 50.0)
    monkeypatch.setattr(bandwidth, "SMALLEST_TOTAL_BYTES", MIB)
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: 6 * MIB - 1)
    bytes_s, how = measure_bandwidth(threads=2)
    assert bytes_s == 24 * MIB
    # Four calls for each of the first three passes, then five.
    times = "4.0 times the cache; triad 0.0 GB/s"
    assert how == f"measured read, best of 11 passes, 2 threads, 24 MiB, {times}"


def test_arrays_that_the_cache_could_hold_are_not_measured(monkeypatch):
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: 1 << 60)
    with pytest.raises(EdgeError, match="4 times the cache, need twice as much free memory"):
        measure_bandwidth(threads=1)
    monkeypatch.setattr(describe, "_chip_name", lambda: "Intel Xeon Processor")
    device = describe.describe_device()
    assert device.memory_bandwidth is None
    assert "memory bandwidth was not measured" in device.remarks[0]
    known = replace(device, memory_bandwidth=Bandwidth(5.0, "measured read"))
    assert describe.measured_again(known) is known


def test_caches_of_two_sockets_add_up(monkeypatch, tmp_path):
    monkeypatch.setattr(chips, "CPU_ROOT", tmp_path)
    assert last_level_cache_bytes() is None
    for cpu in range(4):
        for index, (size, shared) in enumerate([("48K", cpu), ("2048K", cpu), ("32M", cpu // 2)]):
            files = {"size": size, "shared_cpu_list": shared}
            write_files(tmp_path / f"cpu{cpu}" / "cache" / f"index{index}", files)
    assert last_level_cache_bytes() == 64 * MIB


# --- chips


@pytest.mark.parametrize(
    ("name", "gpu_cores", "gb_s", "words"),
    [
        ("Apple M1", 7, 68.3, None),
        ("Apple M2 Max", None, 409.6, None),  # one bandwidth, whatever the cores
        ("Apple M3 Max", 30, 307.2, None),
        ("Apple M3 Max", None, None, "307.2 GB/s (30 GPU cores) or 409.6 GB/s (40 GPU cores)"),
        ("Apple M9 Ultra", 80, None, "Apple M9 Ultra is not in the table"),
        ("Apple M5 Ultra", 64, 1200.0, None),
        ("Apple M6", (10, 16), 153.0, None),  # by memory, whatever the cores
        ("Apple M6", (None, 24), 170.0, None),
        ("Apple M6", (12, 32), None, "170 GB/s (12 GPU cores, 24 GB of memory), but 12 GPU cores"),
        ("Apple M6", 12, None, "12 GPU cores and an unknown number of GB of memory were found"),
    ],
)
def test_a_chip_is_found_or_the_reason_says_what_to_do(name, gpu_cores, gb_s, words):
    cores, memory_gb = gpu_cores if isinstance(gpu_cores, tuple) else (gpu_cores, 0)
    chip, remark = find_chip(name, cores, memory_gb << 30)
    if words is None:
        assert (chip.bandwidth_gb_s, remark) == (gb_s, None)
    else:
        assert chip is None and words in remark and remark.endswith("give it with --bandwidth-gb-s")

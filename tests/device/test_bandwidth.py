"""Bandwidths: measured, of the chip table, and as the ceiling of decoding."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from edge.device import bandwidth
from edge.device.bandwidth import MIN_PASSES, measure_bandwidth
from edge.device.chips import chip_table, find_chip, last_level_cache_bytes
from edge.device.describe import Bandwidth, Device
from edge.device.roofline import bandwidth_fraction, ceiling_tok_s

MIB = 1 << 20


def test_this_machine_moves_bytes():
    measured = measure_bandwidth(threads=1, total_bytes=12 * MIB, budget_s=0.0)
    assert (measured.passes, measured.total_bytes) == (MIN_PASSES, 12 * MIB)
    assert 1e7 < measured.triad_bytes_s < 1e13 and 1e7 < measured.read_bytes_s < 1e13


def test_bytes_are_counted_as_stream_counts_them_and_passes_go_on_for_the_budget(monkeypatch):
    """Each look at the clock is a second later: one second per kernel, so the size is the rate."""
    seconds = iter(range(1000))
    clock = SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    monkeypatch.setattr(bandwidth, "time", clock)
    measured = measure_bandwidth(2, 24 * MIB, budget_s=50.0)
    assert measured.triad_bytes_s == measured.read_bytes_s == 24 * MIB
    assert measured.passes == 11  # four looks at the clock for the first three, then five


def test_caches_of_two_sockets_add_up(tmp_path):
    for cpu in range(4):
        for index, (size, shared) in enumerate([("48K", cpu), ("2048K", cpu), ("32M", cpu // 2)]):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            (folder / "size").write_text(f"{size}\n")
            (folder / "shared_cpu_list").write_text(f"{shared}\n")
    assert last_level_cache_bytes(tmp_path) == 64 * MIB
    assert last_level_cache_bytes(tmp_path / "none") is None


# --- chips


@pytest.mark.parametrize(
    ("name", "gpu_cores", "gb_s"),
    [
        ("Apple M1", 7, 68.3),
        ("Apple M2 Max", None, 409.6),  # one bandwidth, whatever the cores
        ("Apple M3 Max", 30, 307.2),
        ("Apple M3 Max", 40, 409.6),
    ],
)
def test_a_chip_is_found_by_name_and_cores(name, gpu_cores, gb_s):
    chip, remark = find_chip(name, gpu_cores)
    assert (chip.bandwidth_gb_s, remark) == (gb_s, None)


@pytest.mark.parametrize(
    ("name", "gpu_cores", "words"),
    [
        ("Apple M3 Max", None, "307.2 GB/s (30 GPU cores) or 409.6 GB/s (40 GPU cores)"),
        ("Apple M5 Max", 36, "36 GPU cores is none of these"),
        ("Apple M9 Ultra", 80, "Apple M9 Ultra is not in the table"),
        ("Apple M2 Pro Max", 38, "not in the table"),  # the report's chip, which does not exist
    ],
)
def test_an_ambiguous_or_unknown_chip_says_how_to_go_on(name, gpu_cores, words):
    chip, remark = find_chip(name, gpu_cores)
    assert chip is None and words in remark and remark.endswith("give it with --bandwidth-gb-s")


def test_the_table_is_whole():
    chips = chip_table()
    assert {chip.name.split()[1] for chip in chips} == {"M1", "M2", "M3", "M4", "M5"}
    seen = [(chip.name, cores) for chip in chips for cores in chip.gpu_cores]
    assert len(seen) == len(set(seen))
    for chip in chips:
        assert 50 < chip.bandwidth_gb_s < 1000 and 8 <= chip.max_memory_gb <= 512
        assert chip.sources.keys() == {"bandwidth_gb_s", "gpu_cores", "max_memory_gb"}
        for source in chip.sources.values():
            assert source == "from memory" or source.startswith("published: ")


# --- the roofline

PC = Device(
    name="PC",
    memory_bandwidth=Bandwidth(204.8, "measured read"),
    gpu_memory_bandwidth=Bandwidth(1000.0, "driver"),
    cache_bytes=32_000_000,
)


def test_the_ceilings_of_the_reports_chip():
    """5.6 GB per token: 36.6 tok/s on an M2 Pro, 73 on an M2 Max."""
    assert ceiling_tok_s(5.6e9, 204.8e9) == pytest.approx(36.57, abs=0.01)
    assert ceiling_tok_s(5.6e9, 409.6e9) == pytest.approx(73.14, abs=0.01)
    for size, speed in ((0, 1e9), (1e9, 0), (-1, 1e9)):
        with pytest.raises(ValueError):
            ceiling_tok_s(size, speed)


@pytest.mark.parametrize(
    ("on_gpu", "tok_s", "token_bytes", "reached", "words"),
    [
        (False, 28.0, 5.6e9, 0.7656, ""),
        (False, 53.0, 5.6e9, 1.449, "296.8 GB/s, 145% of the 204.8 GB/s"),
        (True, 20.0, 2e9, 0.04, ""),  # the GPU's own memory
        (False, 4000.0, 4e6, None, "4 MB fit in the cache of 32 MB"),
        (True, 20.0, 1e8, None, "fit in the cache"),
    ],
)
def test_fractions_of_the_bandwidth(on_gpu, tok_s, token_bytes, reached, words):
    found, why = bandwidth_fraction(PC, on_gpu, tok_s, token_bytes)
    assert found == (reached if reached is None else pytest.approx(reached, abs=1e-3))
    assert words in (why or "") and bool(words) == bool(why)


@pytest.mark.parametrize(("remarks", "words"), [(("no M9 yet",), "no M9 yet"), ((), "is known")])
def test_an_unknown_bandwidth_is_a_reason(remarks, words):
    unknown = replace(PC, memory_bandwidth=None, remarks=remarks)
    reached, why = bandwidth_fraction(unknown, False, 20.0, 2e9)
    assert reached is None and why.startswith("bandwidth_fraction: ") and words in why

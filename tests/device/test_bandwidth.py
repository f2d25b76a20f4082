import pytest

from edge.device.bandwidth import (
    MIN_PASSES,
    Measured,
    last_level_cache_bytes,
    measure_bandwidth,
)

MIB = 1 << 20


def test_this_machine_moves_bytes():
    measured = measure_bandwidth(threads=1, total_bytes=12 * MIB, budget_s=0.0)
    assert measured.passes == MIN_PASSES
    assert measured.total_bytes == 12 * MIB
    assert 1e7 < measured.triad_bytes_s < 1e13
    assert 1e7 < measured.read_bytes_s < 1e13
    assert measured.bytes_s == max(measured.triad_bytes_s, measured.read_bytes_s)


def test_bytes_are_counted_as_stream_counts_them():
    """Each array once per pass: with one second per kernel, the size is the rate."""
    seconds = iter(range(1000))
    measured = measure_bandwidth(2, 24 * MIB, budget_s=0.0, clock=lambda: float(next(seconds)))
    assert measured.triad_bytes_s == measured.read_bytes_s == 24 * MIB


def test_passes_go_on_for_the_budget():
    seconds = iter(range(1000))
    measured = measure_bandwidth(1, 1 * MIB, budget_s=50.0, clock=lambda: float(next(seconds)))
    assert measured.passes == 11  # four looks at the clock for the first three, then five


@pytest.mark.parametrize(("multiple", "words"), [(4.0, ", 4.0 times the cache"), (None, "")])
def test_the_method_is_told(multiple, words):
    measured = Measured(1e9, 2e9, 4, 192 * MIB, 7, multiple)
    assert measured.method == f"best of 7 passes, 4 threads, 192 MiB{words}"


def test_caches_of_two_sockets_add_up(tmp_path):
    for cpu in range(4):
        for index, (size, shared) in enumerate([("48K", cpu), ("2048K", cpu), ("32M", cpu // 2)]):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            (folder / "size").write_text(f"{size}\n")
            (folder / "shared_cpu_list").write_text(f"{shared}\n")
    assert last_level_cache_bytes(tmp_path) == 64 * MIB
    assert last_level_cache_bytes(tmp_path / "none") is None

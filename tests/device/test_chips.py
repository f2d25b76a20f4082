import pytest

from edge.device.chips import chip_table, find_chip


@pytest.mark.parametrize(
    ("name", "gpu_cores", "gb_s"),
    [
        ("Apple M1", 7, 68.3),
        ("Apple M2 Pro", 19, 204.8),
        ("Apple M2 Max", None, 409.6),  # one bandwidth, whatever the cores
        ("Apple M2 Max", 31, 409.6),
        ("Apple M3 Max", 30, 307.2),
        ("Apple M3 Max", 40, 409.6),
        ("Apple M4 Max", 32, 410.0),
        ("Apple M4 Max", 40, 546.0),
        ("Apple M5 Max", 40, 614.0),
    ],
)
def test_by_name_and_cores(name, gpu_cores, gb_s):
    chip, remark = find_chip(name, gpu_cores)
    assert chip is not None and chip.bandwidth_gb_s == gb_s
    assert remark is None


@pytest.mark.parametrize(
    ("name", "gpu_cores", "words"),
    [
        ("Apple M3 Max", None, "307.2 GB/s (30 GPU cores) or 409.6 GB/s (40 GPU cores)"),
        ("Apple M5 Max", 36, "36 GPU cores is none of these"),
        ("Apple M9 Ultra", 80, "Apple M9 Ultra is not in the table"),
        ("Apple M2 Pro Max", 38, "not in the table"),  # the report's chip, which is none
    ],
)
def test_what_is_ambiguous_or_unknown_says_how_to_go_on(name, gpu_cores, words):
    chip, remark = find_chip(name, gpu_cores)
    assert chip is None
    assert words in remark and remark.endswith("give it with --bandwidth-gb-s")


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

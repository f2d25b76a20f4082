"""Apple's memory bandwidth by chip and GPU core count, from a table; sizes of caches."""

import re
from functools import cache
from importlib import resources
from pathlib import Path

import msgspec

from edge.device.system import text_of

OVERRIDE = "give it with --bandwidth-gb-s"
# Larger than the system-level cache of any Apple chip so far (96 MB, from memory).
APPLE_CACHE_BYTES = 100_000_000
# Larger than the second-level cache of any NVIDIA GPU so far (126 MB, from memory).
NVIDIA_CACHE_BYTES = 130_000_000
CPU_ROOT = Path("/sys/devices/system/cpu")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Chip(msgspec.Struct, frozen=True):
    """GPU core counts that share a bandwidth. `sources`: column -> where its value comes from."""

    name: str
    gpu_cores: tuple[int, ...]
    bandwidth_gb_s: float
    sources: dict[str, str]


@cache
def chip_table() -> tuple[Chip, ...]:
    table = msgspec.json.decode((resources.files("edge") / "data" / "chips.json").read_bytes())
    return msgspec.convert(table["chips"], tuple[Chip, ...])


def find_chip(name: str, gpu_cores: int | None = None) -> tuple[Chip | None, str | None]:
    """A chip by name and, where it has several bandwidths, GPU cores; else None and a reason."""
    named = [chip for chip in chip_table() if chip.name == name]
    if not named:
        return None, f"the memory bandwidth of {name} is not in the table: {OVERRIDE}"
    exact = [chip for chip in named if gpu_cores in chip.gpu_cores]
    # With one bandwidth an unknown core count does not matter: a later variant.
    if exact or len({chip.bandwidth_gb_s for chip in named}) == 1:
        return (exact or named)[0], None
    choices = " or ".join(
        f"{chip.bandwidth_gb_s:g} GB/s ({'/'.join(map(str, chip.gpu_cores))} GPU cores)"
        for chip in named
    )
    found = "an unknown number of" if gpu_cores is None else gpu_cores
    return None, f"{name} has {choices}, but {found} GPU cores were found: {OVERRIDE}"


def last_level_cache_bytes() -> int | None:
    """Size of the largest cache, all its copies together; None where it is not known."""
    largest, copies = 0, set[str]()
    for index in CPU_ROOT.glob("cpu[0-9]*/cache/index*"):
        written = re.fullmatch(r"(\d+)([KMG]?)", text_of(index / "size") or "")  # "32768K"
        size = int(written[1]) * UNITS[written[2]] if written else 0
        if size > largest:
            largest, copies = size, set()
        if size == largest:
            copies.add(text_of(index / "shared_cpu_list") or index.parent.parent.name)
    return largest * len(copies) or None

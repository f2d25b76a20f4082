"""Apple's memory bandwidth by chip, GPU cores and memory, from a table; sizes of caches."""

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
    """Variants that share a bandwidth. `sources`: column -> where its value comes from.

    `memory_gb` are the sizes of memory that have it, () for all.
    """

    name: str
    gpu_cores: tuple[int, ...]
    bandwidth_gb_s: float
    sources: dict[str, str]
    memory_gb: tuple[int, ...] = ()

    def __str__(self) -> str:
        cores = f"{'/'.join(map(str, self.gpu_cores))} GPU cores"
        sizes = f", {'/'.join(map(str, self.memory_gb))} GB of memory" if self.memory_gb else ""
        return f"{self.bandwidth_gb_s:g} GB/s ({cores}{sizes})"


@cache
def chip_table() -> tuple[Chip, ...]:
    table = msgspec.json.decode((resources.files("edge") / "data" / "chips.json").read_bytes())
    return msgspec.convert(table["chips"], tuple[Chip, ...])


def variants(name: str) -> list[Chip]:
    return [chip for chip in chip_table() if chip.name == name]


def find_chip(
    name: str, gpu_cores: int | None = None, memory_bytes: int | None = None
) -> tuple[Chip | None, str | None]:
    """A chip by name and, where it has several bandwidths, by more; else None and a reason."""
    if not (named := variants(name)):
        return None, f"the memory bandwidth of {name} is not in the table: {OVERRIDE}"
    memory_gb = round((memory_bytes or 0) / 2**30)
    # A later variant may have another number of cores: it matters only if bandwidths differ.
    left = [chip for chip in named if gpu_cores in chip.gpu_cores] or named
    left = [chip for chip in left if memory_gb in chip.memory_gb] or left
    if len({chip.bandwidth_gb_s for chip in left}) == 1:
        return left[0], None
    found = f"{'an unknown number of' if gpu_cores is None else gpu_cores} GPU cores"
    if any(chip.memory_gb for chip in left):
        found += f" and {memory_gb or 'an unknown number of'} GB of memory"
    choices = " or ".join(map(str, left))
    return None, f"{name} has {choices}, but {found} were found: {OVERRIDE}"


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

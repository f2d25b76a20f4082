"""Chips: Apple's memory bandwidth by name and GPU core count, from a table; sizes of caches."""

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from edge.device.system import text_of

OVERRIDE = "give it with --bandwidth-gb-s"
# Larger than the system-level cache of any Apple chip so far (96 MB, from memory).
APPLE_CACHE_BYTES = 100_000_000
# Larger than the second-level cache of any NVIDIA GPU so far (126 MB, from memory).
NVIDIA_CACHE_BYTES = 130_000_000
CPU_ROOT = Path("/sys/devices/system/cpu")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Chip:
    """GPU core counts that share a bandwidth. `sources`: column -> where its value comes from."""

    name: str
    gpu_cores: tuple[int, ...]
    bandwidth_gb_s: float
    max_memory_gb: int
    sources: dict[str, str]


@cache
def chip_table() -> tuple[Chip, ...]:
    """Every known chip."""
    text = (resources.files("edge") / "data" / "chips.json").read_text(encoding="utf-8")
    lines = json.loads(text)["chips"]
    return tuple(Chip(**{**line, "gpu_cores": tuple(line["gpu_cores"])}) for line in lines)


def find_chip(name: str, gpu_cores: int | None = None) -> tuple[Chip | None, str | None]:
    """A chip by name and, where it has several bandwidths, GPU cores; or a sentence."""
    named = [chip for chip in chip_table() if chip.name == name]
    if not named:
        return None, f"the memory bandwidth of {name} is not in the table: {OVERRIDE}"
    exact = [chip for chip in named if gpu_cores in chip.gpu_cores]
    # An unknown core count of a chip with one bandwidth is a variant that came later.
    if exact or len({chip.bandwidth_gb_s for chip in named}) == 1:
        return (exact or named)[0], None
    choices = " or ".join(
        f"{chip.bandwidth_gb_s:g} GB/s ({'/'.join(map(str, chip.gpu_cores))} GPU cores)"
        for chip in named
    )
    unknown = "the number of GPU cores could not be found out"
    found = unknown if gpu_cores is None else f"{gpu_cores} GPU cores is none of these"
    return None, f"{name} comes with {choices}, and {found}: {OVERRIDE}"


def last_level_cache_bytes(root: Path = CPU_ROOT) -> int | None:
    """Size of the largest cache, all its copies together; None where it is not known."""
    largest, copies = 0, set[str]()
    for index in root.glob("cpu[0-9]*/cache/index*"):
        written = re.fullmatch(r"(\d+)([KMG]?)", text_of(index / "size") or "")  # "32768K"
        size = int(written[1]) * UNITS[written[2]] if written else 0
        if size > largest:
            largest, copies = size, set()
        if size == largest:
            copies.add(text_of(index / "shared_cpu_list") or index.parent.parent.name)
    return largest * len(copies) or None

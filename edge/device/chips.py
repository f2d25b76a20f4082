"""Chips: Apple's memory bandwidth by name and GPU core count, from a table; sizes of caches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

OVERRIDE = "give it with --bandwidth-gb-s"
# Larger than the system-level cache of any Apple chip so far (96 MB, from memory).
APPLE_CACHE_BYTES = 100_000_000
# Larger than the second-level cache of any NVIDIA GPU so far (126 MB, from memory).
NVIDIA_CACHE_BYTES = 130_000_000


@dataclass(frozen=True)
class Chip:
    """One line of the table: GPU core counts that share a bandwidth.

    `sources` names, per column, where the value comes from.
    """

    name: str
    gpu_cores: tuple[int, ...]
    bandwidth_gb_s: float
    max_memory_gb: int
    sources: dict[str, str]


@cache
def chip_table() -> tuple[Chip, ...]:
    """Every chip known, as it lies in the package."""
    text = (resources.files("edge") / "data" / "chips.json").read_text(encoding="utf-8")
    lines: list[dict[str, Any]] = json.loads(text)["chips"]
    return tuple(Chip(**{**line, "gpu_cores": tuple(line["gpu_cores"])}) for line in lines)


def find_chip(name: str, gpu_cores: int | None = None) -> tuple[Chip | None, str | None]:
    """Look a chip up.

    Args:
        name: as `sysctl machdep.cpu.brand_string` gives it: "Apple M2 Max".
        gpu_cores: settles which line it is where a name has several bandwidths.

    Returns:
        The chip, or None and the sentence that says why and how to go on.
    """
    named = [chip for chip in chip_table() if chip.name == name]
    if not named:
        return None, f"the memory bandwidth of {name} is not in the table: {OVERRIDE}"
    exact = [chip for chip in named if gpu_cores in chip.gpu_cores]
    if exact:
        return exact[0], None
    # An unheard-of core count of a chip with one bandwidth is a variant that came later.
    if len({chip.bandwidth_gb_s for chip in named}) == 1:
        return named[0], None
    return None, f"{name} comes with {_choices(named)}, and {_found(gpu_cores)}: {OVERRIDE}"


def _choices(chips: list[Chip]) -> str:
    return " or ".join(
        f"{chip.bandwidth_gb_s:g} GB/s ({'/'.join(map(str, chip.gpu_cores))} GPU cores)"
        for chip in chips
    )


def _found(gpu_cores: int | None) -> str:
    if gpu_cores is None:
        return "the number of GPU cores could not be found out"
    return f"{gpu_cores} GPU cores is none of these"

"""One record of powermetrics: what it says, and whether that can be true."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from xml.parsers.expat import ExpatError

from edge.power.powermetrics_plist import read_dictionaries

# What makes up the total of a macOS 13 or newer, by the prefix of its keys.
RAILS = {"cpu": "CPU", "gpu": "GPU", "ane": "ANE"}
MAX_W = 1000.0
MAX_ELAPSED_NS = 24 * 3600 * 10**9
# powermetrics prints six digits, and a sum of three rounded powers is off by three roundings.
RELATIVE_TOLERANCE, TOLERANCE_MW = 2e-5, 0.01

# plistlib promises no exception of its own for what nobody vouches for. Entity declarations are
# refused, so no small record unfolds into a large one.
PARSE_ERRORS = (
    ExpatError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
)


class BadRecordError(ValueError):
    """Why a record is not believed; a few words."""


@dataclass(frozen=True)
class Record:
    """What one interval of powermetrics used.

    `joules` add up; `beside` holds what overlaps them. `ended` is the tool's own stamp, cut
    to whole seconds, of the end of the interval. `digest` tells records apart. `follows_loss`:
    something between it and the record before was not believed.
    """

    elapsed_ns: int
    joules: Mapping[str, float]
    beside: Mapping[str, float] = field(default_factory=dict)
    thermal: str | None = None
    ended: datetime | None = None
    hw_model: str | None = None
    build: str | None = None
    digest: int = 0
    follows_loss: bool = False


def read_plist_record(data: bytes) -> Record:
    """Read and check one record.

    Raises:
        BadRecordError: it is broken, or contradicts itself.
    """
    try:
        document = read_dictionaries(data)
    except PARSE_ERRORS as error:
        raise BadRecordError("broken XML") from error
    if not isinstance(document, dict):
        raise BadRecordError("no dictionary")
    if document.get("is_delta") is False:
        raise BadRecordError("a total since boot")
    elapsed_ns = _elapsed(document.get("elapsed_ns"))
    # The GPU's own dictionary covers another interval than elapsed_ns, so its energy differs.
    processor = document.get("processor")
    if not isinstance(processor, dict):
        raise BadRecordError("no processor: powermetrics ran without the cpu_power sampler")
    joules, beside = _energies(processor, elapsed_ns)
    return Record(
        elapsed_ns=elapsed_ns,
        joules=joules,
        beside=beside,
        thermal=_text(document.get("thermal_pressure")),
        ended=_utc(document.get("timestamp")),
        hw_model=_text(document.get("hw_model")),
        build=_text(document.get("kern_osversion")),
        digest=hash(data),
    )


def check_energy(energy_j: float, elapsed_ns: int, name: str) -> float:
    """The energy, if a computer can have used it.

    Raises:
        BadRecordError: not finite, negative, or more than a kilowatt.
    """
    if not math.isfinite(energy_j) or energy_j < 0:
        raise BadRecordError(f"{name} is not a number of joules")
    if energy_j / (elapsed_ns / 1e9) >= MAX_W:
        raise BadRecordError(f"{name} of {MAX_W:.0f} W or more")
    return energy_j


def _energies(
    processor: Mapping[str, Any], elapsed_ns: int
) -> tuple[dict[str, float], dict[str, float]]:
    if "cpu_energy" in processor:
        joules = {
            rail: _rail_j(processor, key, elapsed_ns)
            for key, rail in RAILS.items()
            if key == "cpu" or f"{key}_energy" in processor
        }
        _check_combined(processor, joules, elapsed_ns)
        # macOS 12 and older have DRAM, and a package that holds all of these and more.
        if "dram_energy" in processor:
            joules["DRAM"] = _rail_j(processor, "dram", elapsed_ns)
        if "package_energy" in processor:
            return joules, {"Package": _rail_j(processor, "package", elapsed_ns)}
        return joules, {}
    if "package_joules" in processor:
        return {"Package": _intel_package_j(processor, elapsed_ns)}, {}
    raise BadRecordError("no cpu_energy")


def _rail_j(processor: Mapping[str, Any], key: str, elapsed_ns: int) -> float:
    """A rail in joules, its power (mW) proving the units of its energy (mJ)."""
    energy_mj = _number(processor.get(f"{key}_energy"), f"{key}_energy")
    power_mw = _number(processor.get(f"{key}_power"), f"{key}_power")
    energy_j = check_energy(energy_mj / 1e3, elapsed_ns, f"{key}_energy")
    if not _same(power_mw, energy_mj / (elapsed_ns / 1e9)):
        raise BadRecordError(f"{key}_power is not {key}_energy / elapsed_ns")
    return energy_j


def _check_combined(
    processor: Mapping[str, Any], joules: Mapping[str, float], elapsed_ns: int
) -> None:
    if "combined_power" not in processor:
        return
    combined_mw = _number(processor["combined_power"], "combined_power")
    if not _same(combined_mw, sum(joules.values()) * 1e3 / (elapsed_ns / 1e9)):
        raise BadRecordError("combined_power is not the sum of its parts")


def _intel_package_j(processor: Mapping[str, Any], elapsed_ns: int) -> float:
    energy_j = _number(processor["package_joules"], "package_joules")
    power_w = _number(processor.get("package_watts"), "package_watts")
    check_energy(energy_j, elapsed_ns, "package_joules")
    if not _same(power_w * 1e3, energy_j * 1e3 / (elapsed_ns / 1e9)):
        raise BadRecordError("package_watts is not package_joules / elapsed_ns")
    return energy_j


def _same(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=RELATIVE_TOLERANCE, abs_tol=TOLERANCE_MW)


def _elapsed(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MAX_ELAPSED_NS:
        raise BadRecordError("no elapsed_ns")
    return value


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRecordError(f"no {name}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRecordError(f"{name} is not finite")
    return number


def _text(value: object) -> str | None:
    return value[:64] if isinstance(value, str) else None


def _utc(value: object) -> datetime | None:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else None

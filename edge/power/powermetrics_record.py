"""One record of powermetrics: what it says, and whether that can be true."""

from __future__ import annotations

import plistlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from xml.parsers.expat import ExpatError

# What makes up the total, by the prefix of its keys; DRAM on macOS 12 and older.
RAILS = {"cpu": "CPU", "gpu": "GPU", "ane": "ANE", "dram": "DRAM"}
MAX_W = 1000.0
MAX_ELAPSED_NS = 24 * 3600 * 10**9

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
    digest: int = 0
    follows_loss: bool = False


def read_plist_record(data: bytes) -> Record:
    """Read and check one record.

    Raises:
        BadRecordError: it is broken, or cannot be true.
    """
    try:
        document = plistlib.loads(data, fmt=plistlib.FMT_XML)
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
        thermal=_thermal(document.get("thermal_pressure")),
        ended=_utc(document.get("timestamp")),
        hw_model=_text(document.get("hw_model")),
        digest=hash(data),
    )


def _energies(
    processor: Mapping[str, Any], elapsed_ns: int
) -> tuple[dict[str, float], dict[str, float]]:
    joules = {
        rail: _rail_j(processor, key, elapsed_ns)
        for key, rail in RAILS.items()
        if key == "cpu" or f"{key}_energy" in processor
    }
    # macOS 12 and older have a package that holds all of these and more.
    if "package_energy" in processor:
        return joules, {"Package": _rail_j(processor, "package", elapsed_ns)}
    return joules, {}


def _rail_j(processor: Mapping[str, Any], key: str, elapsed_ns: int) -> float:
    """A rail in joules, if its millijoules can be what a computer used."""
    energy_mj = processor.get(f"{key}_energy")
    if isinstance(energy_mj, bool) or not isinstance(energy_mj, int | float):
        raise BadRecordError(f"no {key}_energy")
    # Another unit would be a thousand times as much. NaN is not in the range either.
    if not 0 <= energy_mj < MAX_W * elapsed_ns / 1e6:
        raise BadRecordError(f"{key}_energy is not of 0 to {MAX_W:.0f} W")
    return energy_mj / 1e3


def _elapsed(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MAX_ELAPSED_NS:
        raise BadRecordError("no elapsed_ns")
    return value


def _thermal(value: object) -> str | None:
    """Apple's word for the pressure in lower case, as THERMAL_LEVELS has it."""
    level = _text(value)
    return level.lower() if level else None


def _text(value: object) -> str | None:
    return value[:64] if isinstance(value, str) else None


def _utc(value: object) -> datetime | None:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else None

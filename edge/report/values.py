"""Values out of a stranger's profile, taken only where they are what they should be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Beyond it nothing that is measured here is a measurement.
LARGEST = 1e15


def number(value: Any) -> float | None:
    """A finite number of believable size, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) and abs(found) < LARGEST else None


def not_negative(value: Any) -> float | None:
    """Such a number that is not below 0."""
    found = number(value)
    return found if found is not None and found >= 0 else None


def numbers(value: Any) -> list[float]:
    """The numbers of a list."""
    found = [number(item) for item in value] if isinstance(value, list) else []
    return [item for item in found if item is not None]


def objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []

"""Rounding weights to float16, with a check that they survive it."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge.errors import EdgeError

Array = np.ndarray[Any, np.dtype[Any]]


def to_float16(array: Array, name: str) -> Array:
    """Round to float16.

    Raises:
        EdgeError: a value is not finite, or too large for float16.
    """
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.max(np.abs(array)))
        raise EdgeError(
            f"tensor {name} has values that float16 cannot hold (largest {largest:g}); "
            f"the checkpoint is damaged or diverged, so download it again or choose another."
        )
    return half

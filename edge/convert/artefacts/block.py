"""Some rows of one tensor, in whichever float type an artefact stores."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from edge.convert.sources.weights import Array
from edge.errors import EdgeError


class Block:
    """Consecutive rows of a tensor, checked, and rounded once however many artefacts ask.

    Args:
        name: the tensor's Hugging Face name.
        values: float16, float32 or float64 rows.

    Raises:
        EdgeError: a value is not finite.
    """

    def __init__(self, name: str, values: Array):
        self.name = name
        self.values = values
        if not np.isfinite(self.largest):
            raise EdgeError(
                f"tensor {name} holds values that are not finite; the checkpoint is damaged or "
                f"diverged, so download it again or choose another."
            )

    @cached_property
    def largest(self) -> float:
        """The largest magnitude, NaN or infinite where one value is."""
        if not self.values.size:
            return 0.0
        return float(max(self.values.max(), -self.values.min()))

    @cached_property
    def float32(self) -> Array:
        """The rows as float32."""
        return self._rounded(np.float32)

    @cached_property
    def float16(self) -> Array:
        """The rows as float16."""
        return self._rounded(np.float16)

    @cached_property
    def bfloat16(self) -> Array:
        """The rows as bfloat16, its bits in a uint16; ties go to even as everywhere."""
        bits = self.float32.view(np.uint32)
        even = (bits >> 16) & 1
        return ((bits + (0x7FFF + even)) >> 16).astype(np.uint16)

    def _rounded(self, dtype: type[np.floating]) -> Array:
        if self.largest > float(np.finfo(dtype).max):
            raise EdgeError(
                f"tensor {self.name} has values that {np.dtype(dtype)} cannot hold (largest "
                f"{self.largest:g}); the checkpoint is damaged or diverged, so download it again "
                f"or choose another."
            )
        return np.ascontiguousarray(self.values, dtype)

"""Summaries of repeated measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """A measured quantity over n trials; `sd` is the sample standard deviation, None for n = 1."""

    median: float
    mean: float
    sd: float | None
    n: int

    @property
    def relative_sd(self) -> float:
        """sd / mean; 0 where one value says nothing of the spread."""
        return self.sd / self.mean if self.sd and self.mean else 0.0


def summarise(values: Iterable[float | None]) -> Quantity | None:
    """All values that were measured, none dropped; None if there are none."""
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    return Quantity(
        median=statistics.median(measured),
        mean=statistics.fmean(measured),
        sd=statistics.stdev(measured) if len(measured) > 1 else None,
        n=len(measured),
    )

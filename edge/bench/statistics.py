"""Summaries of repeated measurements: centre, spread, interval, and what looks wrong.

Nothing is ever dropped: an outlier is flagged and counted.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from edge.profile.profile import Quantity
from edge.stats import interval


def summarise(
    values: Iterable[float | None], groups: Iterable[int] | None = None
) -> Quantity | None:
    """All values that were measured, none dropped; None if there are none.

    Args:
        values: one per trial; None where nothing was measured.
        groups: the process each value comes from. Values of one process share its memory layout
            and its heat, so the interval takes each process as one observation (pyperf does so
            for its values); without groups each value is one.
    """
    listed = list(values)
    labels = list(range(len(listed))) if groups is None else list(groups)
    pairs = [(label, v) for label, v in zip(labels, listed, strict=True) if v is not None]
    if not pairs:
        return None
    measured = [value for _, value in pairs]
    means = [
        statistics.fmean(v for other, v in pairs if other == label)
        for label in dict.fromkeys(label for label, _ in pairs)
    ]
    return Quantity(
        median=statistics.median(measured),
        mean=statistics.fmean(measured),
        sd=statistics.stdev(measured) if len(measured) > 1 else None,
        n=len(measured),
        ci95=interval(means),
    )

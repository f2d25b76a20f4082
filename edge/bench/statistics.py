"""Summaries of repeated measurements: centre, spread, interval, and what looks wrong.

Nothing is ever dropped: an outlier is flagged and counted.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from edge.profile.profile import Quantity
from edge.stats import interval

__all__ = ["SHARES", "Quantity", "drift", "outliers", "percentiles", "summarise"]

# hyperfine's limit: ten standard deviations of normal values, each of which is 1.4826 median
# absolute deviations. (Iglewicz and Hoaglin 1993 advise 3.5 of them, which timings, skewed as they
# are, exceed all the time.)
OUTLIER_MADS = 14.826
# Below five values neither an outlier nor a trend can be told from the spread.
MIN_FOR_SHAPE = 5
# Two tails of Kendall's test: one in a hundred steady series is called drifting.
DRIFT_LEVEL = 0.01
# Percentiles of the times of single tokens.
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


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


def outliers(values: Sequence[float]) -> list[int]:
    """Places of values far from the median, in median absolute deviations; none for few values."""
    if len(values) < MIN_FOR_SHAPE:
        return []
    centre = statistics.median(values)
    mad = statistics.median(abs(v - centre) for v in values)
    if mad == 0:
        return []
    return [i for i, v in enumerate(values) if abs(v - centre) / mad > OUTLIER_MADS]


def drift(values: Sequence[float]) -> float:
    """The relative change over a series that goes one way, as a device that heats up does.

    Kendall's test against the order (Mann 1945) decides whether it does, Sen's median slope
    (1968) by how much: both ignore single outliers.

    Returns:
        Slope x (n - 1) / median; 0.0 where the series is too short or has no direction.
    """
    n = len(values)
    if n < MIN_FOR_SHAPE or not statistics.median(values):
        return 0.0
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    score = sum(_sign(values[j] - values[i]) for i, j in pairs)
    sd = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    z = max(abs(score) - 1, 0) / sd  # continuity correction
    if 2 * (1 - statistics.NormalDist().cdf(z)) > DRIFT_LEVEL:
        return 0.0
    slope = statistics.median((values[j] - values[i]) / (j - i) for i, j in pairs)
    return slope * (n - 1) / statistics.median(values)


def percentiles(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Linear interpolation between the closest ranks, NumPy's default.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("percentiles of no values")
    ordered = sorted(values)
    found = []
    for share in shares:
        at = share * (len(ordered) - 1)
        low = math.floor(at)
        high = min(low + 1, len(ordered) - 1)
        found.append(ordered[low] + (ordered[high] - ordered[low]) * (at - low))
    return found


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)

"""Student's t: intervals of means, and whether two means differ.

Computed here in some forty lines, because scipy takes longer to import than a short benchmark
to run; the tests compare with scipy's values.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
BISECTIONS = 60  # halves any bracket to a double's precision


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Student's interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, n = statistics.fmean(values), len(values)
    half = t_quantile(0.5 + confidence / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean - half, mean + half


@dataclass(frozen=True)
class Welch:
    """Welch's test (1947) of two means: the t statistic, its degrees of freedom, two-sided p."""

    t: float
    degrees: float
    p: float


def welch(a: Sequence[float], b: Sequence[float]) -> Welch | None:
    """Whether two samples of unequal variance differ in their means; None below two values each.

    Without any spread the test has nothing to compare with: p is then 1 for equal means, 0 else.
    """
    if min(len(a), len(b)) < 2:
        return None
    difference = statistics.fmean(a) - statistics.fmean(b)
    shares = [statistics.variance(s) / len(s) for s in (a, b)]
    if not sum(shares):
        return Welch(
            math.copysign(math.inf, difference) if difference else 0.0, 1.0, not difference
        )
    t = difference / math.sqrt(sum(shares))
    parts = sum(s**2 / (len(v) - 1) for s, v in zip(shares, (a, b), strict=True))
    degrees = sum(shares) ** 2 / parts
    return Welch(t, degrees, 2 * t_tail(abs(t), degrees))


def t_tail(t: float, degrees: float) -> float:
    """The share of Student's t distribution above `t` >= 0 (DLMF 8.17, Abramowitz 26.5.27)."""
    return _incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5) / 2


def t_quantile(share: float, degrees: float) -> float:
    """Where the distribution has `share` (0.5 or more) below it, by bisection."""
    low, high = 0.0, 1.0
    while t_tail(high, degrees) > 1 - share:
        high *= 2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, degrees) > 1 - share else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised I_x(a, b), by its continued fraction (DLMF 8.17.22, Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges fast
        return 1 - _incomplete_beta(1 - x, b, a)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * value

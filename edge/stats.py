"""Statistics of repeated measurements: intervals, paired and Welch's tests, outliers, drift.

Student's t distribution is computed here: scipy would be a large dependency for one function.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

CONFIDENCE = 0.95
# Share of experiments in which a difference as large as `detectable` says is found.
POWER = 0.95
BISECTIONS = 60  # halves any bracket to a double's precision
# hyperfine's limit: ten standard deviations of normal values, each of 1.4826 median absolute
# deviations. (Iglewicz and Hoaglin 1993 use 3.5, which skewed timings exceed all the time.)
OUTLIER_MADS = 14.826
# With fewer values an outlier or a trend cannot be distinguished from the spread.
MIN_VALUES = 5
# Significance level of Kendall's test, two-sided: 1 % of steady series are reported as drifting.
DRIFT_LEVEL = 0.01
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Student's confidence interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, n = statistics.fmean(values), len(values)
    half = t_quantile(0.5 + confidence / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean - half, mean + half


@dataclass(frozen=True)
class Paired:
    """Centre of paired differences, and its interval; None for a single pair."""

    centre: float
    interval: tuple[float, float] | None


def paired(differences: Sequence[float], confidence: float = CONFIDENCE) -> Paired:
    """Centre of one difference per pair, of which there must be one.

    Wilcoxon's signed-rank interval around the median of all pairs' means (Hodges and Lehmann
    1963): exact for any symmetric noise, and a few disturbed pairs do not widen it, as they do
    Student's. It needs six pairs for 95 %; for fewer it is Student's around the mean.
    """
    n = len(differences)
    outside = _signed_rank_outside(n, confidence)
    if outside < 0:
        return Paired(statistics.fmean(differences), interval(differences, confidence))
    values = np.asarray(differences, dtype=np.float64)
    first, second = np.triu_indices(n)
    means = np.sort((values[first] + values[second]) / 2)
    limits = float(means[outside]), float(means[-1 - outside])
    return Paired(float(np.median(means)), limits)


@cache
def _signed_rank_outside(n: int, confidence: float) -> int:
    """Means of pairs beyond each limit of the interval; -1 where n is too small for one."""
    chances = np.zeros(n * (n + 1) // 2 + 1)  # of every sum of ranks
    chances[0] = 1.0
    for rank in range(1, n + 1):
        chances[rank:] += chances[:-rank].copy()
        chances /= 2
    tail = (1 - confidence) / 2 * (1 + 1e-9)
    return int(np.searchsorted(np.cumsum(chances), tail, side="right")) - 1


def detectable(half: float, degrees: float, confidence: float = CONFIDENCE) -> float:
    """Difference that is found with the probability POWER where intervals have this half width."""
    return half * (1 + t_quantile(POWER, degrees) / t_quantile(0.5 + confidence / 2, degrees))


@dataclass(frozen=True)
class Welch:
    """Welch's t test (1947) of two means, with Satterthwaite's degrees of freedom (1946).

    `error` is the standard error of the difference, `p` two-sided.
    """

    t: float
    degrees: float
    p: float
    error: float


def welch(a: Sequence[float], b: Sequence[float]) -> Welch | None:
    """Welch's test of two samples; None if one has fewer than two values.

    If both samples have no variance, p is 1 for equal means, else 0.
    """
    if min(len(a), len(b)) < 2:
        return None
    difference = statistics.fmean(a) - statistics.fmean(b)
    shares = [statistics.variance(values) / len(values) for values in (a, b)]
    error = math.sqrt(sum(shares))
    if not error:
        t = math.copysign(math.inf, difference) if difference else 0.0
        return Welch(t, 1.0, float(not difference), 0.0)
    parts = sum(s**2 / (len(v) - 1) for s, v in zip(shares, (a, b), strict=True))
    t, degrees = difference / error, sum(shares) ** 2 / parts
    return Welch(t, degrees, 2 * t_tail(abs(t), degrees), error)


def t_tail(t: float, degrees: float) -> float:
    """Upper tail of Student's t distribution at `t` >= 0 (DLMF 8.17, Abramowitz 26.5.27)."""
    return _incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5) / 2


@lru_cache(maxsize=1000)
def t_quantile(share: float, degrees: float) -> float:
    """Quantile of Student's t distribution for `share` >= 0.5, by bisection."""
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


def outliers(values: Sequence[float]) -> list[int]:
    """Indices of values more than OUTLIER_MADS from the median; [] for fewer than MIN_VALUES."""
    if len(values) < MIN_VALUES:
        return []
    centre = statistics.median(values)
    mad = statistics.median(abs(v - centre) for v in values)
    return [i for i, v in enumerate(values) if mad and abs(v - centre) / mad > OUTLIER_MADS]


def drift(values: Sequence[float]) -> float:
    """Relative change over a series with a trend, slope x (n - 1) / median; 0.0 without a trend.

    Kendall's test against the order (Mann 1945) detects the trend, Sen's median slope (1968)
    measures it; both are robust to single outliers.
    """
    n = len(values)
    if n < MIN_VALUES or not statistics.median(values):
        return 0.0
    slopes = [(values[j] - values[i]) / (j - i) for i in range(n) for j in range(i + 1, n)]
    score = sum((slope > 0) - (slope < 0) for slope in slopes)
    sd = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    z = max(abs(score) - 1, 0) / sd  # continuity correction
    if 2 * (1 - statistics.NormalDist().cdf(z)) > DRIFT_LEVEL:
        return 0.0
    return statistics.median(slopes) * (n - 1) / statistics.median(values)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 with linear interpolation; `values` must not be empty."""
    found = np.quantile(np.asarray(values, dtype=np.float64), list(PERCENTILES.values()))
    return dict(zip(PERCENTILES, found.tolist(), strict=True))

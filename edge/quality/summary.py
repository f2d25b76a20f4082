"""Figures of quality from scores, with intervals over windows.

Tokens of one window share their context, so their errors are not independent, and neither are
those of two artefacts on the same token. So the window is the unit of every standard error
(cluster-robust, for the ratio of two sums over windows), and an artefact's change against the
reference is that of the differences, window by window.
"""

import math
import statistics
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge.quality.corpus import Windows
from edge.quality.score import Scores
from edge.stats import interval

# Its exponential is a finite number, and so is that times an error.
MOST_NATS = 500.0
Interval = tuple[float, float]
NO_REFERENCE = "no reference was asked for, so nothing is compared with one"
ONE_WINDOW = "one window has no spread: no standard error and no interval; use more tokens"
NOT_FINITE = "its logits are not finite numbers: the artefact is broken; convert it again"


@dataclass(frozen=True)
class Quality:
    """How well an artefact predicts `tokens` in `windows`, and how far it is from the reference.

    Perplexity is exp of the mean surprise at a scored token; its ratio to the reference's is above
    1 where it is worse. KL is in nats per token, top-1 agreement the share of tokens where both
    have the same on top. `reasons` have a sentence for everything that is None.
    """

    perplexity: float | None = None
    perplexity_se: float | None = None
    bits_per_byte: float | None = None
    perplexity_ratio: float | None = None
    perplexity_ratio_ci95: Interval | None = None
    kl_mean: float | None = None
    kl_mean_ci95: Interval | None = None
    kl_p99: float | None = None
    kl_max: float | None = None
    top1_agreement: float | None = None
    top1_agreement_ci95: Interval | None = None
    tokens: int = 0
    windows: int = 0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Mean:
    """A mean over tokens, and one value per window whose mean and spread it has."""

    mean: float
    by_window: list[float]

    @property
    def standard_error(self) -> float | None:
        n = len(self.by_window)
        return statistics.stdev(self.by_window) / math.sqrt(n) if n > 1 else None

    def interval(self, low: float = -math.inf, high: float = math.inf) -> Interval | None:
        found = interval(self.by_window)
        return None if found is None else (max(low, found[0]), min(high, found[1]))


def summarise(windows: Windows, own: Scores, reference: Scores | None) -> Quality:
    """Figures of one artefact from scores (windows, tokens - 1), the reference's likewise."""
    used = int(windows.scored.any(axis=1).sum())
    sizes = Quality(tokens=int(windows.scored.sum()), windows=used)
    columns = ("nll",) if reference is None else ("nll", "kl")
    if not all(np.isfinite(own[column][windows.scored]).all() for column in columns):
        return replace(sizes, reasons=(NOT_FINITE,))
    reasons = [NO_REFERENCE] if reference is None else []
    return replace(
        sizes,
        **_perplexity(own, windows),
        **({} if reference is None else _compared(own, reference, windows)),
        reasons=(*reasons, *([ONE_WINDOW] if used < 2 else [])),
    )


def _perplexity(own: Scores, windows: Windows) -> dict[str, Any]:
    nll = _mean(own["nll"], windows)
    error, perplexity, size = nll.standard_error, _exp(nll.mean), int(windows.bytes.sum())
    bits = nll.mean * int(windows.scored.sum()) / math.log(2)
    return {
        "perplexity": perplexity,
        "perplexity_se": None if error is None else perplexity * error,
        "bits_per_byte": bits / size if size else None,
    }


def _compared(own: Scores, reference: Scores, windows: Windows) -> dict[str, Any]:
    change = _mean(own["nll"].astype(np.float64) - reference["nll"], windows)
    between, kl = change.interval(), _mean(own["kl"], windows)
    kl_scored = own["kl"][windows.scored].astype(np.float64)
    same = _mean(own["top"] == reference["top"], windows)
    return {
        "perplexity_ratio": _exp(change.mean),
        "perplexity_ratio_ci95": between and (_exp(between[0]), _exp(between[1])),
        "kl_mean": kl.mean,
        "kl_mean_ci95": kl.interval(low=0.0),
        "kl_p99": float(np.quantile(kl_scored, 0.99)),
        "kl_max": float(kl_scored.max()),
        "top1_agreement": same.mean,
        "top1_agreement_ci95": same.interval(0.0, 1.0),
    }


def _exp(nats: float) -> float:
    """A broken artefact's surprise may be endless: then as much as a number holds."""
    return math.exp(min(nats, MOST_NATS))


def _mean(values: np.ndarray, windows: Windows) -> _Mean:
    """Mean of a value per position, over those that are scored.

    A window that deviates by S - m C from the mean m (S its sum, C its count) is represented by
    m + (S - m C) / mean(C): with equal counts that is its own mean, and always the spread of
    these gives the cluster-robust standard error of m (Cochran, Sampling Techniques, ch. 6).
    """
    scored = windows.scored
    table = np.where(scored, values.astype(np.float64), 0.0)
    used = scored.any(axis=1)
    sums, counts = table.sum(axis=1)[used], scored.sum(axis=1)[used]
    mean = float(sums.sum() / counts.sum())
    return _Mean(mean, list(mean + (sums - mean * counts) / counts.mean()))

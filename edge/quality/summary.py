"""Figures of quality from scores, with intervals that know what belongs together.

Tokens of one window share their context, so their errors are not independent, and neither are
those of two artefacts on the same token. So the window is the unit of every standard error
(cluster-robust, for the ratio of two sums over windows), and an artefact's change against the
reference is that of the differences, window by window.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.quality.divergence import Scores, concatenated
from edge.quality.windows import Windows
from edge.stats import interval

# Its exponential is a number, and so is that times an error.
MOST_NATS = 500.0
Values = np.ndarray[Any, np.dtype[np.float64]]
Interval = tuple[float, float]
NO_REFERENCE = "no reference was asked for, so nothing is compared with one"
ONE_WINDOW = "one window has no spread: no standard error and no interval; use more tokens"
NOT_FINITE = "its logits are no finite numbers: the artefact is broken; convert it again"


@dataclass(frozen=True)
class Quality:
    """How well an artefact predicts, and how far it is from the reference.

    Attributes:
        perplexity: exp of the mean surprise at a scored token.
        perplexity_se: its standard error.
        bits_per_byte: surprise over the bytes of the scored tokens.
        perplexity_ratio: to the reference's; above 1 is worse.
        perplexity_ratio_ci95: from the differences of each window.
        kl_mean: nats per token, and its interval, 99th percentile and largest value.
        top1_agreement: share of tokens where both have the same on top, and its interval.
        tokens: scored.
        windows: with scored tokens.
        reasons: a sentence for everything that is None.
    """

    perplexity: float | None
    perplexity_se: float | None
    bits_per_byte: float | None
    perplexity_ratio: float | None
    perplexity_ratio_ci95: Interval | None
    kl_mean: float | None
    kl_mean_ci95: Interval | None
    kl_p99: float | None
    kl_max: float | None
    top1_agreement: float | None
    top1_agreement_ci95: Interval | None
    tokens: int
    windows: int
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Mean:
    """A mean over tokens, and one value per window whose mean and spread are its own."""

    mean: float
    by_window: list[float]

    @property
    def standard_error(self) -> float | None:
        n = len(self.by_window)
        return statistics.stdev(self.by_window) / math.sqrt(n) if n > 1 else None

    def interval(self, low: float = -math.inf, high: float = math.inf) -> Interval | None:
        """Student's, no wider than what is possible."""
        found = interval(self.by_window)
        return None if found is None else (max(low, found[0]), min(high, found[1]))


def summarise(
    windows: Windows, scores: Sequence[Scores], reference: Sequence[Scores] | None
) -> Quality:
    """Figures of one artefact.

    Args:
        windows: which tokens count, and their bytes.
        scores: one per window.
        reference: the reference's, in the same order.
    """
    own = concatenated(list(scores))
    other = None if reference is None else concatenated(list(reference))
    compared = other is not None
    sizes: dict[str, Any] = {
        "tokens": windows.scored_tokens,
        "windows": int(windows.scored.any(axis=1).sum()),
    }
    if not _is_finite(own, windows, compared):
        return _nothing(sizes)
    nll = _mean(own.nll, windows)
    perplexity = _exp(nll.mean)
    error = nll.standard_error
    return Quality(
        perplexity=perplexity,
        perplexity_se=None if error is None else perplexity * error,
        bits_per_byte=_bits_per_byte(nll.mean, windows),
        **_change(own, other, windows),
        **_divergence(own, windows, compared),
        **_agreement(own, other, windows),
        **sizes,
        reasons=_reasons(compared, sizes["windows"]),
    )


def _exp(nats: float) -> float:
    """Of a broken artefact's surprise too: as much as a number holds."""
    return math.exp(min(nats, MOST_NATS))


def _bits_per_byte(nll_mean: float, windows: Windows) -> float | None:
    size = windows.scored_bytes
    return nll_mean * windows.scored_tokens / math.log(2) / size if size else None


def _change(own: Scores, other: Scores | None, windows: Windows) -> dict[str, Any]:
    if other is None:
        return {"perplexity_ratio": None, "perplexity_ratio_ci95": None}
    change = _mean(own.nll.astype(np.float64) - other.nll, windows)
    between = change.interval()
    return {
        "perplexity_ratio": _exp(change.mean),
        "perplexity_ratio_ci95": between and (_exp(between[0]), _exp(between[1])),
    }


def _divergence(own: Scores, windows: Windows, compared: bool) -> dict[str, Any]:
    if not compared:
        return dict.fromkeys(("kl_mean", "kl_mean_ci95", "kl_p99", "kl_max"))
    kl = _mean(own.kl, windows)
    scored = own.kl[windows.scored.reshape(-1)].astype(np.float64)
    return {
        "kl_mean": kl.mean,
        "kl_mean_ci95": kl.interval(low=0.0),
        "kl_p99": float(np.quantile(scored, 0.99)),
        "kl_max": float(scored.max()),
    }


def _agreement(own: Scores, other: Scores | None, windows: Windows) -> dict[str, Any]:
    if other is None:
        return {"top1_agreement": None, "top1_agreement_ci95": None}
    same = _mean(own.top == other.top, windows)
    return {"top1_agreement": same.mean, "top1_agreement_ci95": same.interval(0.0, 1.0)}


def _mean(values: np.ndarray, windows: Windows) -> _Mean:
    """Of a value per position, over those that are scored.

    A window that deviates by S - m C from the mean m (S its sum, C its count) is represented by
    m + (S - m C) / mean(C): with equal counts that is its own mean, and always the spread of
    these gives the cluster-robust standard error of m (Cochran, Sampling Techniques, ch. 6).
    """
    scored = windows.scored
    table = np.where(scored, values.astype(np.float64).reshape(scored.shape), 0.0)
    used = scored.any(axis=1)
    sums, counts = table.sum(axis=1)[used], scored.sum(axis=1)[used]
    mean = float(sums.sum() / counts.sum())
    return _Mean(mean, list(mean + (sums - mean * counts) / counts.mean()))


def _is_finite(own: Scores, windows: Windows, compared: bool) -> bool:
    scored = windows.scored.reshape(-1)
    columns = (own.nll, own.kl) if compared else (own.nll,)
    return all(bool(np.isfinite(column[scored]).all()) for column in columns)


def _nothing(sizes: dict[str, Any]) -> Quality:
    names = [name for name in Quality.__dataclass_fields__ if name not in (*sizes, "reasons")]
    none: dict[str, Any] = dict.fromkeys(names)
    return Quality(**none, **sizes, reasons=(NOT_FINITE,))


def _reasons(compared: bool, windows: int) -> tuple[str, ...]:
    return (*(() if compared else (NO_REFERENCE,)), *((ONE_WINDOW,) if windows < 2 else ()))

"""Perplexity, KL divergence and top-1 agreement from scores, with intervals over windows.

Tokens of one window share their context, so their errors are not independent, and neither are
the errors of two artefacts on the same token. The window is therefore the unit of every standard
error (cluster-robust, for the ratio of two sums over windows), and an artefact is compared with
the reference by the differences of each window.
"""

import math
import statistics
from typing import Any

import numpy as np

from edge.profile.profile import QualityFigures
from edge.quality.corpus import Windows
from edge.quality.score import Scores
from edge.stats import interval

# exp of it is finite, also times a standard error.
MOST_NATS = 500.0
Interval = tuple[float, float]
NO_REFERENCE = "there is no reference, so KL divergence and top-1 agreement are missing"
ONE_WINDOW = "one window gives no standard error and no interval; use more tokens"
NOT_FINITE = "the logits are not finite: the artefact is broken; convert it again"


class Summary(QualityFigures, frozen=True, kw_only=True):
    """Figures of one artefact; `reasons` say why those that are None could not be computed.

    Perplexity is exp of the mean of -log q in nats; a ratio to the reference's above 1 is worse.
    """

    reasons: tuple[str, ...] = ()


def summarise(windows: Windows, own: Scores, reference: Scores | None) -> Summary:
    """Figures of one artefact from its and the reference's scores, each (windows, tokens - 1)."""
    used = int(windows.scored.any(axis=1).sum())
    figures: dict[str, Any] = {"tokens": int(windows.scored.sum()), "windows": used}
    columns = ("nll",) if reference is None else ("nll", "kl")
    if not all(np.isfinite(own[column][windows.scored]).all() for column in columns):
        return Summary(**figures, reasons=(NOT_FINITE,))
    reasons: tuple[str, ...] = ()
    figures |= _perplexity(own, windows)
    if reference is None:
        reasons = (NO_REFERENCE,)
    else:
        figures |= _compared(own, reference, windows)
    if used < 2:
        reasons += (ONE_WINDOW,)
    return Summary(**figures, reasons=reasons)


def _perplexity(own: Scores, windows: Windows) -> dict[str, Any]:
    nll, nll_of_windows = _mean(own["nll"], windows)
    perplexity, size, n = _exp(nll), int(windows.bytes.sum()), len(nll_of_windows)
    bits = nll * int(windows.scored.sum()) / math.log(2)
    error = statistics.stdev(nll_of_windows) / math.sqrt(n) if n > 1 else None
    return {
        "perplexity": perplexity,
        "perplexity_se": None if error is None else perplexity * error,
        "bits_per_byte": bits / size if size else None,
    }


def _compared(own: Scores, reference: Scores, windows: Windows) -> dict[str, Any]:
    change, changes = _mean(own["nll"].astype(np.float64) - reference["nll"], windows)
    kl, kl_of_windows = _mean(own["kl"], windows)
    same, same_of_windows = _mean(own["top"] == reference["top"], windows)
    kl_scored = own["kl"][windows.scored].astype(np.float64)
    between = interval(changes)
    return {
        "perplexity_ratio": _exp(change),
        "perplexity_ratio_ci95": between and (_exp(between[0]), _exp(between[1])),
        "kl_mean": kl,
        "kl_mean_ci95": _interval(kl_of_windows, math.inf),
        "kl_p99": float(np.quantile(kl_scored, 0.99)),
        "kl_max": float(kl_scored.max()),
        "top1_agreement": same,
        "top1_agreement_ci95": _interval(same_of_windows, 1.0),
    }


def _interval(values: list[float], most: float) -> Interval | None:
    """Student's interval of the mean, cut to 0 and `most`."""
    found = interval(values)
    return found and (max(0.0, found[0]), min(most, found[1]))


def _exp(nats: float) -> float:
    """Finite also for a broken artefact, whose -log q can be huge."""
    return math.exp(min(nats, MOST_NATS))


def _mean(values: np.ndarray, windows: Windows) -> tuple[float, list[float]]:
    """Mean over the scored positions of values (windows, tokens - 1), and a value per window.

    With S the sum and C the count of a window and m the mean, its value is
    m + (S - m C) / mean(C), which is its own mean where counts are equal. The spread of these
    values gives the cluster-robust standard error of m (Cochran, Sampling Techniques, ch. 6).
    """
    scored = windows.scored
    table = np.where(scored, values.astype(np.float64), 0.0)
    used = scored.any(axis=1)
    sums, counts = table.sum(axis=1)[used], scored.sum(axis=1)[used]
    mean = float(sums.sum() / counts.sum())
    return mean, list(mean + (sums - mean * counts) / counts.mean())

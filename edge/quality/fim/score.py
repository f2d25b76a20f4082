"""Middles compared with what was there, and statistics of many.

Exact match is strict: every character, whitespace included. The stripped one leaves whitespace at
both ends out, as the BigCode harness does, whose figures the Stable Code report prints. Edit
similarity is 1 - Levenshtein distance / length of the longer text, in characters, whitespace
included; 1 for two empty texts.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rapidfuzz.distance import Levenshtein

from edge.stats import interval

Z_95 = statistics.NormalDist().inv_cdf(0.975)
Interval = tuple[float, float]


@dataclass(frozen=True)
class Score:
    """One middle against what was there."""

    exact: bool
    stripped: bool
    similarity: float


def score(expected: str, got: str) -> Score:
    """Compare two texts."""
    return Score(
        exact=got == expected,
        stripped=got.strip() == expected.strip(),
        similarity=Levenshtein.normalized_similarity(expected, got),
    )


def summarise(scores: Sequence[Score]) -> dict[str, Any]:
    """Shares with Wilson's interval, the mean similarity with Student's, of at least one middle."""
    exact = sum(s.exact for s in scores)
    similarities = [s.similarity for s in scores]
    spread = interval(similarities)
    return {
        "samples": len(scores),
        "exact_match": exact / len(scores),
        "exact_match_ci95": wilson(exact, len(scores)),
        "exact_match_stripped": statistics.fmean(s.stripped for s in scores),
        "edit_similarity": statistics.fmean(similarities),
        "edit_similarity_ci95": spread and (max(0.0, spread[0]), min(1.0, spread[1])),
    }


def compare(scores: Sequence[Score], reference: Sequence[Score]) -> dict[str, Any]:
    """Differences of the same holes, at least one, filled by two artefacts in the same order."""
    pairs = list(zip(scores, reference, strict=True))
    gained = sum(a.exact and not b.exact for a, b in pairs)
    lost = sum(b.exact and not a.exact for a, b in pairs)
    differences = [a.similarity - b.similarity for a, b in pairs]
    return {
        "gained": gained,
        "lost": lost,
        "exact_match": (gained - lost) / len(pairs),
        "exact_match_ci95": agresti_min(gained, lost, len(pairs)),
        "exact_match_p": mcnemar(gained, lost),
        "edit_similarity": statistics.fmean(differences),
        "edit_similarity_ci95": interval(differences),
    }


def wilson(successes: int, count: int) -> Interval:
    """Wilson's (1927) 95 % interval of a share; it also holds for 0 and for all."""
    share, z2 = successes / count, Z_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    # At 0 and 1 the bounds are exact; rounding must not move them.
    low = 0.0 if successes == 0 else middle - half
    return low, 1.0 if successes == count else middle + half


def agresti_min(gained: int, lost: int, count: int) -> Interval:
    """95 % interval of a difference of paired shares.

    Agresti and Min (2005), "Simple improved confidence intervals for comparing matched
    proportions": Wald's with half a pair more in each of the four cells.
    """
    more, fewer, n = gained + 0.5, lost + 0.5, count + 2
    difference = (more - fewer) / n
    half = Z_95 * math.sqrt(more + fewer - (more - fewer) ** 2 / n) / n
    return max(-1.0, difference - half), min(1.0, difference + half)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of the exact McNemar test: gained and lost are equally likely."""
    changed, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(changed, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << changed))

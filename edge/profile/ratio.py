"""A row's quantity relative to another row's that was measured in the same rounds."""

import math
import statistics
from collections.abc import Sequence

from msgspec import Struct

from edge.profile.trial import MOST, Count, Interval, NotNegative, Number, Trial
from edge.stats import CONFIDENCE, detectable, paired

LARGEST_LOG = math.log(MOST) - 1


class Ratio(Struct, frozen=True, kw_only=True):
    """A row's quantity over the baseline's, with its interval; each of `rounds` is a pair.

    `detectable` is the smallest relative difference that such data shows 95 % of the time. It and
    `interval` are None for a single round.
    """

    ratio: Number
    interval: Interval | None = None
    confidence: NotNegative = CONFIDENCE
    rounds: Count
    detectable: NotNegative | None = None


def ratio_of(
    ours: Sequence[Trial], theirs: Sequence[Trial], key: str, confidence: float = CONFIDENCE
) -> Ratio | None:
    """The ratio of two rows' counted trials; None without a round in which both have a value."""
    logs = log_ratios(ours, theirs, key)
    if not logs:
        return None
    found, n = paired(logs, confidence), len(logs)
    ratio = _exp(found.centre)
    if found.interval is None:
        return Ratio(ratio=ratio, confidence=confidence, rounds=n)
    low, high = found.interval
    return Ratio(
        ratio=ratio,
        interval=(_exp(low), _exp(high)),
        confidence=confidence,
        rounds=n,
        detectable=_exp(detectable((high - low) / 2, n - 1, confidence)) - 1,
    )


def log_ratios(ours: Sequence[Trial], theirs: Sequence[Trial], key: str) -> list[float]:
    """Per round the median of log(ours / theirs) over its trials, each with its neighbour in time.

    The median, so that another program's burst of work in one trial does not move the round.
    """
    neighbours = {(t.round, t.repetition): _value(t, key) for t in theirs}
    rounds: dict[int, list[float]] = {}
    for trial in ours:
        value, other = _value(trial, key), neighbours.get((trial.round, trial.repetition))
        if value and other:
            rounds.setdefault(trial.round, []).append(math.log(value) - math.log(other))
    return [statistics.median(logs) for _, logs in sorted(rounds.items())]


def _exp(log: float) -> float:
    """The exponential, within what a profile can hold."""
    return math.exp(max(-LARGEST_LOG, min(log, LARGEST_LOG)))


def _value(trial: Trial, key: str) -> float | None:
    source = trial.decode_energy if key == "joules_per_token" else trial
    value: float | None = getattr(source, key, None)
    return value if value is not None and value > 0 else None

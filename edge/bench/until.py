"""Rounds until a difference would be seen, within a bound on time (--until)."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edge.bench.duration import rounded
from edge.profile.baseline import RATES
from edge.profile.profile import Profile
from edge.stats import POWER
from edge.text import percent

# Before it the spread is too uncertain to stop by, and 97 % intervals need seven.
LEAST_ROUNDS = 8
# Of many rounds it looks at every 16th part: each look is another chance of a false alarm.
LOOKS_PER_DOUBLING = 16


def is_look(rounds: int) -> bool:
    """True where the widths are looked at after so many rounds."""
    return rounds >= LEAST_ROUNDS and rounds % max(1, rounds // LOOKS_PER_DOUBLING) == 0


@dataclass
class Until:
    """Adds rounds until every rate's ratio shows a difference of `target` with POWER.

    It looks only at the intervals' widths, never at the ratios, so that it cannot wait for a
    difference to appear.
    """

    target: float
    limit_s: float
    profile: Callable[[], Profile]
    begin_s: float = field(default_factory=time.monotonic)

    def wants_more(self) -> bool:
        profile = self.profile()
        rounds = profile.method.processes_per_row or 1
        passed_s = time.monotonic() - self.begin_s
        left, _ = self._worst(profile)
        is_wide = left is not None and (left > self.target or not is_look(rounds))
        return is_wide and passed_s * (1 + 1 / rounds) < self.limit_s

    def _worst(self, profile: Profile) -> tuple[float | None, str]:
        """The largest of the detectable differences, and of what it is; None without a ratio."""
        found = [
            (ratio.detectable, f"{key.partition('_')[0]} of {row.with_peer(row.artefact)}")
            for row in profile.rows
            for key in RATES
            if (ratio := row.ratios.get(key)) and ratio.detectable is not None
        ]
        return max(found, default=(None, ""))

    def plan(self) -> str:
        return (
            f"then rounds are added until a difference of {percent(self.target)} shows {POWER:.0%} "
            f"of the time, for at most {rounded(self.limit_s)}"
        )

    def result(self) -> str:
        """How it ended."""
        profile = self.profile()
        worst, what = self._worst(profile)
        after = f"after {profile.method.processes_per_row} rounds"
        if worst is None:
            return f"{after} there is nothing to compare: the rows failed"
        if worst <= self.target:
            return f"{after} a difference of {percent(self.target)} shows {POWER:.0%} of the time"
        return (
            f"{after} the time was up: the smallest difference that shows {POWER:.0%} of the time "
            f"is {percent(worst)} ({what}), not {percent(self.target)}: close other programs, or "
            f"raise --until-minutes"
        )

"""How long a run takes: about, beforehand, and what is left of it while it runs."""

import time
from dataclasses import dataclass, field

from edge.bench.runner import Run
from edge.bench.worker import START_S

# The plan counts as if it had been right for so long, so that the first trial does not decide.
PRIOR_S = 10.0


def planned_s(run: Run) -> float:
    return 2 * run.idle_s + run.rounds * sum(job.process_s for job in run.jobs)


def estimate(run: Run) -> str:
    """The time of a run, with the reason."""
    job, rows = run.jobs[0], len(run.jobs)
    trials = run.rounds * job.repetitions
    timed = trials * sum(each.windows for each in run.jobs)
    length = f"{job.min_window_s:g} s" if job.min_window_s else "one pass"
    why = ", as power is measured" if run.has_power else ""
    idle = f", idle power twice for {run.idle_s:g} s" if run.idle_s else ""
    return (
        f"measuring takes about {rounded(planned_s(run))}: {_count(rows, 'row')} x "
        f"{_count(trials, 'trial')}, in all {_count(timed, 'window')} of {length}{why}, and "
        f"{_count(run.rounds * rows, 'process', 'es')} of {START_S:g} s{idle}; converting, loading "
        f"a large model, long passes and cooling down are extra"
    )


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"


def rounded(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds, -1), 10):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@dataclass
class Pace:
    """The share of a run that is done, and the seconds that are left as it has gone so far."""

    run: Run
    begin_s: float = field(default_factory=time.monotonic)
    _shares: dict[int, float] = field(default_factory=dict)

    def after(self, row: int, share: float) -> tuple[float, float]:
        """Share and seconds left of the whole run once so much of a row is done."""
        self._shares[row] = share
        of_rows = sum(self.run.jobs[n].process_s * s for n, s in self._shares.items())
        all_s, done_s = planned_s(self.run), self.run.idle_s + self.run.rounds * of_rows
        slowness = (time.monotonic() - self.begin_s + PRIOR_S) / (done_s + PRIOR_S)
        return done_s / all_s, (all_s - done_s) * slowness

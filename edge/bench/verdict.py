"""VALID, WARN or INVALID: what a reader may think of a row, why, and what to do next.

INVALID: there is no figure, or it cannot be true. WARN: there is one, with a doubt. Nothing here
removes a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge.bench.energy import TrialEnergy, WindowEnergy
from edge.bench.job import MAX_PASSES
from edge.bench.rounds import ProcessRun
from edge.bench.statistics import summarise
from edge.bench.trial import Trial
from edge.device.state import NOMINAL, doubts
from edge.profile.profile import Verdict
from edge.stats import drift, outliers

ORDER: tuple[Verdict, ...] = ("VALID", "WARN", "INVALID")

# pyperf's practice: a spread of 10 % is unstable.
MAX_RELATIVE_SD = 0.10
MIN_TRIALS = 3
# Below a tenth of a second the scheduler is part of the figure, whatever window was asked for.
MIN_WINDOW_S = 0.1
# A trend that is real but smaller than this changes no conclusion.
MIN_DRIFT = 0.02
# Zeus needs seconds, ML.ENERGY asks for 30: counters are published up to 2.2 s apart.
MIN_ENERGY_S, GOOD_ENERGY_S = 10.0, 30.0
MAX_EDGE_SHARE = 0.05


@dataclass(frozen=True)
class Judgement:
    """A verdict with the sentences that led to it."""

    verdict: Verdict = "VALID"
    reasons: tuple[str, ...] = ()

    def with_(self, verdict: Verdict, reasons: Iterable[str]) -> Judgement:
        """No better than before; unchanged by no reasons."""
        added = tuple(dict.fromkeys(r for r in reasons if r not in self.reasons))
        if not added:
            return self
        worse = max(self.verdict, verdict, key=ORDER.index)
        return Judgement(worse, (*self.reasons, *added))


def judge_failure(runs: Sequence[ProcessRun], rounds: int) -> Judgement:
    """INVALID with the reason of the process that failed, and in which round."""
    failed = next(run for run in runs if run.outcome.failure)
    reason = failed.outcome.failure or ""
    if rounds > 1:
        reason = f"{reason.rstrip('.')} (round {failed.round + 1} of {rounds})"
    return Judgement("INVALID", (reason,))


def judge_speed(trials: Sequence[Trial], min_window_s: float, done: int, rounds: int) -> Judgement:
    """What is weak about the rates.

    Args:
        trials: those that count, in the order of time.
        min_window_s: what their windows should have lasted.
        done: rounds that were measured.
        rounds: rounds that were planned.
    """
    warnings = []
    if done < rounds:
        warnings.append(f"only {done} of {rounds} rounds were measured: the run was stopped")
    if len(trials) < MIN_TRIALS:
        count = "1 trial" if len(trials) == 1 else f"{len(trials)} trials"
        warnings.append(f"only {count}: use -r {MIN_TRIALS} or more")
    decode = [t.decode_tok_s for t in trials]
    prefill = [t.prefill_tok_s for t in trials]
    warnings += _spread("decode", decode, "-n") + _spread("prefill", prefill, "-p")
    for name, windows in (
        ("decode", [t.decode_window_ns for t in trials]),
        ("prefill", [t.prefill_window_ns for t in trials]),
    ):
        warnings += _short(name, windows, min_window_s)
    return Judgement().with_("WARN", warnings)


def judge_conditions(runs: Sequence[ProcessRun], threads: int) -> Judgement:
    """What the machine's state says against the figures: the first sentence of each kind."""
    found: dict[str, str] = {}
    for run in runs:
        sentences = doubts(run.before, run.after, threads)
        if run.cooled.unsettled:
            sentences.append(
                f"{run.cooled.unsettled} after a wait of {run.cooled.waited_s:.0f} s: close other "
                f"programs, or raise --cooldown"
            )
        if run.power_lost:
            sentences.append(f"power was lost during the run: {run.power_lost}")
        for sentence in sentences:
            found.setdefault(re.sub(r"[\d.]+", "#", sentence), sentence)
    return Judgement().with_("WARN", found.values())


def judge_energy(energies: Sequence[TrialEnergy], flags: Iterable[str]) -> Judgement:
    """What is weak about the joules; nothing where there are none.

    Args:
        energies: of the trials that count.
        flags: the meter's own doubts.
    """
    windows = [w for e in energies for w in (e.decode, e.prefill) if w is not None]
    known = [w for w in windows if w.missing is None]
    if not known:
        return Judgement()
    warnings = [*flags, *_edges(known), *_heat(known)]
    shortest_s = min(w.seconds for w in known)
    judgement = Judgement().with_("WARN", warnings)
    if shortest_s < MIN_ENERGY_S:
        return judgement.with_("WARN", [_short_energy(shortest_s, f"{MIN_ENERGY_S:g} or more")])
    if shortest_s < GOOD_ENERGY_S:
        return judgement.with_("VALID", [_short_energy(shortest_s, f"{GOOD_ENERGY_S:g}")])
    return judgement


def _spread(name: str, rates: Sequence[float | None], flag: str) -> list[str]:
    """Spread, outliers and drift of one rate over the trials."""
    values = [rate for rate in rates if rate is not None]
    quantity = summarise(values)
    if quantity is None:
        return []
    said = []
    if quantity.relative_sd > MAX_RELATIVE_SD:
        said.append(
            f"{name} varies by {quantity.relative_sd:.0%} between trials: close other "
            f"programs, and use more or longer trials (-r, {flag}, --min-window)"
        )
    if far := outliers(values):
        said.append(
            f"{name}: {len(far)} of {len(values)} trials lie far from the others and are kept: "
            f"close other programs and run again"
        )
    change = drift(values)
    if abs(change) >= MIN_DRIFT:
        how = "falls" if change < 0 else "rises"
        said.append(
            f"{name} {how} by {abs(change):.0%} over the trials, as on a device that heats up or "
            f"cools down: raise --cooldown"
        )
    return said


def _short(name: str, windows: Sequence[tuple[int, int] | None], min_window_s: float) -> list[str]:
    lengths_s = [(w[1] - w[0]) / 1e9 for w in windows if w is not None]
    if not lengths_s or min(lengths_s) >= max(min_window_s, MIN_WINDOW_S):
        return []
    shortest_s = min(lengths_s)
    if shortest_s < MIN_WINDOW_S:
        return [f"the {name} window is {shortest_s:.2g} s, too short to quote: raise --min-window"]
    return [
        f"the {name} window is {shortest_s:.2g} s, shorter than the {min_window_s:g} s asked for, "
        f"after {MAX_PASSES} passes: use a larger -n or -p"
    ]


def _edges(windows: Sequence[WindowEnergy]) -> list[str]:
    worst = max(w.edge_share for w in windows)
    if worst <= MAX_EDGE_SHARE:
        return []
    return [
        f"the edges of a window may hold {worst:.0%} of its joules that belong elsewhere: raise "
        f"--min-window"
    ]


def _heat(windows: Sequence[WindowEnergy]) -> list[str]:
    levels = {w.energy.thermal_worst for w in windows} - {None, NOMINAL}
    return [
        f"thermal pressure reached {level} in a timed window: the machine slows itself, let it "
        f"cool and raise --cooldown"
        for level in sorted(map(str, levels))
    ]


def _short_energy(seconds: float, better: str) -> str:
    return (
        f"energy comes from windows of {seconds:.2g} s, whose edges weigh much: use --min-window "
        f"{better}"
    )

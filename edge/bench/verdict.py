"""Reasons for a row's verdict: what is weak about its figures, and what to do next.

INVALID: there is no figure, or it cannot be true. WARN: there is one, with a doubt. Nothing here
removes a value.
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence

from edge.bench.runner import ProcessRun
from edge.bench.trial import MAX_PASSES
from edge.device.state import NOMINAL, warnings_between
from edge.profile.profile import Reason, Verdict
from edge.profile.trial import EnergyWindow, Trial
from edge.stats import drift, outliers

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
VERDICTS: dict[str, Verdict] = {"reason": "VALID", "warning": "WARN", "error": "INVALID"}


def warning(text: str) -> Reason:
    """A doubt about a row's figures."""
    return Reason("", "warning", text)


def worst_first(reasons: Iterable[Reason]) -> list[Reason]:
    """Errors, then warnings, then the others; each once."""
    levels = list(VERDICTS)
    return sorted(dict.fromkeys(reasons), key=lambda reason: -levels.index(reason.level))


def judge_speed(
    trials: Sequence[Trial], min_window_s: float, done: int, rounds: int
) -> Iterator[Reason]:
    """Doubts about the rates of trials in the order of time; `done` of `rounds` were measured."""
    if done < rounds:
        yield warning(f"only {done} of {rounds} rounds were measured: the run was stopped")
    if len(trials) < MIN_TRIALS:
        plural = "" if len(trials) == 1 else "s"
        yield warning(f"only {len(trials)} trial{plural}: use -r {MIN_TRIALS} or more")
    yield from _spread("decode", [t.decode_tok_s for t in trials], "-n")
    yield from _spread("prefill", [t.prefill_tok_s for t in trials], "-p")
    decodes = [t.passes for t in trials if t.decode_tok_s is not None]
    yield from _short("decode", decodes, min_window_s)
    yield from _short("prefill", [t.prefills for t in trials if t.prefills], min_window_s)


def _spread(name: str, rates: Sequence[float | None], flag: str) -> Iterator[Reason]:
    values = [rate for rate in rates if rate is not None]
    if len(values) < 2:
        return
    relative_sd = statistics.stdev(values) / statistics.fmean(values)
    if relative_sd > MAX_RELATIVE_SD:
        yield warning(
            f"{name} varies by {relative_sd:.0%} between trials: close other programs, and use "
            f"more or longer trials (-r, {flag}, --min-window)"
        )
    if far := outliers(values):
        yield warning(
            f"{name}: {len(far)} of {len(values)} trials lie far from the others and are kept: "
            f"close other programs and run again"
        )
    change = drift(values)
    if abs(change) >= MIN_DRIFT:
        yield warning(
            f"{name} {'falls' if change < 0 else 'rises'} by {abs(change):.0%} over the trials, as "
            f"on a device that heats up or cools down: raise --cooldown",
        )


def _short(
    name: str, windows: Sequence[Sequence[tuple[int, int]]], min_window_s: float
) -> Iterator[Reason]:
    """`windows` have begin and end of every pass of a trial."""
    lengths_s = [(passes[-1][1] - passes[0][0]) / 1e9 for passes in windows]
    shortest_s = min(lengths_s, default=min_window_s + MIN_WINDOW_S)
    if shortest_s < MIN_WINDOW_S:
        text = f"the {name} window is {shortest_s:.2g} s, too short to quote: raise --min-window"
        yield warning(text)
    elif shortest_s < min_window_s:
        yield warning(
            f"the {name} window is {shortest_s:.2g} s, shorter than the {min_window_s:g} s asked "
            f"for, after {MAX_PASSES} passes: use a larger -n or -p",
        )


def judge_conditions(runs: Sequence[ProcessRun], threads: int) -> list[Reason]:
    """Doubts about the machine's state: the first sentence of each kind."""
    found: dict[str, str] = {}
    for run in runs:
        kinds = warnings_between(run.before, run.after, threads)
        if run.cooldown.timed_out:
            kinds["cooldown"] = (
                f"{run.cooldown.timed_out} after a wait of {run.cooldown.waited_s:.0f} s: close "
                f"other programs, or raise --cooldown"
            )
        if run.power_lost:
            kinds["power"] = f"power was lost during the run: {run.power_lost}"
        found = {**kinds, **found}
    return [warning(text) for text in found.values()]


def judge_energy(windows: Iterable[EnergyWindow], flags: Iterable[str]) -> Iterator[Reason]:
    """Doubts about the joules, the meter's own first; nothing where there are none."""
    known = [window for window in windows if window.missing is None]
    if not known:
        return
    yield from (warning(flag) for flag in flags)
    used = [(window, sum(window.joules.values())) for window in known]
    # Joules that an edge can have misplaced.
    worst = max((w.edge_error_j / joules for w, joules in used if joules > 0), default=0.0)
    if worst > MAX_EDGE_SHARE:
        yield warning(
            f"the edges of a window may hold {worst:.0%} of its joules that belong elsewhere: "
            f"raise --min-window",
        )
    levels = {window.thermal_worst for window in known} - {None, NOMINAL}
    for level in sorted(map(str, levels)):
        yield warning(
            f"thermal pressure reached {level} in a timed window: the machine slows itself, let "
            f"it cool and raise --cooldown",
        )
    shortest_s = min(window.window_s for window in known)
    if shortest_s < GOOD_ENERGY_S:
        is_weak = shortest_s < MIN_ENERGY_S
        better = f"{MIN_ENERGY_S:g} or more" if is_weak else f"{GOOD_ENERGY_S:g}"
        yield Reason(
            "",
            "warning" if is_weak else "reason",
            f"energy comes from windows of {shortest_s:.2g} s, whose edges weigh much: use "
            f"--min-window {better}",
        )

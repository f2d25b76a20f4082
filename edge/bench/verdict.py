"""Warnings about a row's figures, each with what to do."""

import statistics
from collections.abc import Iterable, Iterator, Sequence

from edge.bench.runner import ProcessRun
from edge.bench.trial import MAX_PASSES
from edge.device.state import NOMINAL, warnings_between
from edge.profile.profile import Reason, Workload
from edge.profile.trial import EnergyWindow, Trial
from edge.profile.verdict import MIN_TRIALS, MIN_WINDOW_S, judge_spread, warning

# Zeus needs seconds, ML.ENERGY asks for 30: counters are updated up to 2.2 s apart.
MIN_ENERGY_S, GOOD_ENERGY_S = 10.0, 30.0
MAX_EDGE_SHARE = 0.05
# Of a server's requests: share of the tokens asked for, and difference of a prompt's length.
MIN_TOKENS, PROMPT_TOLERANCE, PROMPT_SLACK = 0.75, 0.1, 8


def judge_speed(
    trials: Sequence[Trial], min_window_s: float, done: int, rounds: int
) -> Iterator[Reason]:
    """What is wrong with the rates of trials in order of time; `done` of `rounds` were measured."""
    if done < rounds:
        yield warning(f"only {done} of {rounds} rounds were measured: the run was stopped")
    if len(trials) < MIN_TRIALS:
        plural = "" if len(trials) == 1 else "s"
        yield warning(f"only {len(trials)} trial{plural}: use -r {MIN_TRIALS} or more")
    for name, flag in (("decode", "-n"), ("prefill", "-p")):
        rates = [getattr(trial, f"{name}_tok_s") for trial in trials]
        yield from judge_spread(name, rates, f"-r, {flag}, --min-window", "raise --cooldown")
    decodes = [t.passes for t in trials if t.decode_tok_s is not None]
    yield from _short("decode", decodes, min_window_s)
    yield from _short("prefill", [t.prefills for t in trials if t.prefills], min_window_s)


def _short(
    name: str, windows: Sequence[Sequence[tuple[int, int]]], min_window_s: float
) -> Iterator[Reason]:
    """`windows` has begin and end of every pass per trial."""
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
    """Warnings about the machine's state: the first of each kind."""
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


def judge_requests(trials: Sequence[Trial], workload: Workload) -> Iterator[Reason]:
    """Warnings where a server's requests were not the workload."""
    fewest = min((count for t in trials for count in t.request_tokens), default=workload.generate)
    if fewest < MIN_TOKENS * workload.generate:
        yield warning(
            f"the server stopped early, at {fewest} of {workload.generate} tokens in one request, "
            f"as it has no ignore_eos: use a smaller -n, or another model"
        )
    prompts = [t.prompt_tokens for t in trials if t.prompt_tokens]
    off = abs(statistics.median(prompts) - workload.prompt) if prompts else 0
    if off > max(PROMPT_TOLERANCE * workload.prompt, PROMPT_SLACK):
        yield warning(
            f"prompts had {statistics.median(prompts):.0f} tokens as the server counts them, not "
            f"{workload.prompt}: its chat template or context length changes them"
        )


def judge_energy(
    windows: Iterable[EnergyWindow], flags: Iterable[str], longer: str
) -> Iterator[Reason]:
    """Warnings about the joules, the meter's own first; `longer` is the advice for fewer edges."""
    known = [window for window in windows if window.missing is None]
    if not known:
        return
    yield from (warning(flag) for flag in flags)
    used = [(window, sum(window.joules.values())) for window in known]
    worst = max((w.edge_error_j / joules for w, joules in used if joules > 0), default=0.0)
    if worst > MAX_EDGE_SHARE:
        yield warning(
            f"up to {worst:.0%} of a window's joules may belong to the time before or after it: "
            f"{longer}"
        )
    levels = {window.thermal_worst for window in known} - {None, NOMINAL}
    for level in sorted(map(str, levels)):
        yield warning(
            f"thermal pressure reached {level} in a timed window, which slows the machine: let it "
            f"cool and raise --cooldown",
        )
    shortest_s = min(window.window_s for window in known)
    if shortest_s < GOOD_ENERGY_S:
        is_weak = shortest_s < MIN_ENERGY_S
        better = f"{MIN_ENERGY_S:g} or more" if is_weak else f"{GOOD_ENERGY_S:g}"
        yield Reason(
            "",
            "warning" if is_weak else "reason",
            f"energy comes from windows of {shortest_s:.2g} s, too short for slow counters: use "
            f"--min-window {better}",
        )

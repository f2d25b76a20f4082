"""Time and energy of one repetition, and a process's power over time."""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise

from msgspec.structs import replace

from edge.bench.engines.engine import Engine
from edge.bench.workload import TokenPlan
from edge.power.meter import Energy, Sample, integrate, worst_thermal
from edge.profile.profile import Workload
from edge.profile.trial import EnergyWindow, PowerSeries, ThermalChange, Trial

NS_PER_S = 1e9
# Tokens per trial whose times a profile keeps one by one; later passes keep first and last only.
KEPT_TOKENS = 4096
MAX_PASSES = 1000
# Share of a window that samples must cover.
MIN_COVERAGE = 0.99
# Of the power when idle: a meter that reads less under load does not move.
LEAST_RISE = 1.01
# About 25 bytes each in the file; more than a plot has pixels.
KEPT_SAMPLES = 1000
Passes = Sequence[Sequence[int]]


def run_trial(engine: Engine, plan: TokenPlan, workload: Workload, least_s: float = 0.0) -> Trial:
    """Times prefill passes, then decode passes, each kind for at least `least_s` seconds.

    All stamps are of `time.monotonic_ns()`, taken when the device has finished. The cache holds
    the plan's depth before and after. Passes start at the depth; those of decoding in a joint
    workload behind the prompt.
    """
    depth, start = workload.depth, workload.decode_depth

    def prefill() -> list[int]:
        engine.trim(depth)
        begin_ns = time.monotonic_ns()
        engine.prefill(plan.prompt)
        return [begin_ns, time.monotonic_ns()]

    def decode() -> list[int]:
        stamps: list[int] = []
        engine.trim(start)
        engine.decode(plan.generate, lambda: stamps.append(time.monotonic_ns()))
        return stamps

    prefills = _repeated(prefill, least_s) if workload.prompt else []
    passes = _repeated(decode, least_s) if workload.generate else []
    engine.trim(depth)
    return make_trial(workload.prompt, prefills, passes, workload.batch)


def _repeated(one_pass: Callable[[], list[int]], least_s: float) -> list[list[int]]:
    passes = [one_pass()]
    while passes[-1][-1] - passes[0][0] < least_s * NS_PER_S and len(passes) < MAX_PASSES:
        passes.append(one_pass())
    return passes


def make_trial(prompt_tokens: int, prefills: Passes, passes: Passes, batch: int = 1) -> Trial:
    """Rates and stamps of one repetition; a rate is None where its window is missing.

    Decode rate: sum of (N - 1) over sum of (t_N - t_1), as N stamps bound N - 1 intervals, times
    the sequences of a batch. `ttft_s` is the mean time of a prefill, the model being loaded;
    `prompt_tokens` are those of one sequence.
    """
    prompt_tokens *= batch
    prefill_s = sum(stamps[-1] - stamps[0] for stamps in prefills) / NS_PER_S
    ttft_s = prefill_s / len(prefills) if prefills else None
    decode_s = sum(stamps[-1] - stamps[0] for stamps in passes) / NS_PER_S
    steps = sum(len(stamps) - 1 for stamps in passes)
    return Trial(
        warmup=False,
        prompt_tokens=prompt_tokens,
        decode_tok_s=batch * steps / decode_s if decode_s else None,
        prefill_tok_s=prompt_tokens / ttft_s if ttft_s and prompt_tokens else None,
        ttft_s=ttft_s,
        prefill_ns=[stamp for span in prefills for stamp in span],
        pass_begin_ns=[stamps[0] for stamps in passes],
        pass_end_ns=[stamps[-1] for stamps in passes],
        token_us=[_times_us(stamps) for stamps in passes],
    )


def _times_us(stamps: Sequence[int]) -> list[int]:
    """Microseconds between stamps; cumulative times are rounded, so that sums stay exact."""
    since_us = [round((stamp - stamps[0]) / 1000) for stamp in stamps]
    return [after - before for before, after in pairwise(since_us)]


def kept_times(token_us: list[list[int]]) -> list[list[int]]:
    """Times of whole passes with up to `KEPT_TOKENS` tokens in all; at least one pass."""
    counts = accumulate(len(times) + 1 for times in token_us)
    kept = [times for times, tokens in zip(token_us, counts, strict=True) if tokens <= KEPT_TOKENS]
    return kept or token_us[:1]


def with_energy(
    trial: Trial,
    samples: Sequence[Sample],
    source: str,
    idle_w: float | None = None,
    batch: int = 1,
) -> Trial:
    """The trial with the energy of both windows; unchanged without samples.

    A window reaches from the first stamp of all passes to the last. The decode window holds the
    work of all tokens but the first, of every sequence of a `batch`. `source` names the meter in
    the reasons; one that does not read more than `idle_w` under load does not move.

    Between the passes of a server are its prefills, so each is integrated by itself; those are too
    short for joules of their own.
    """
    if not samples:
        return trial
    prefill, spans = None, trial.passes
    if trial.request_tokens:
        tokens = sum(count - 1 for count in trial.request_tokens)
    else:
        steps = sum(len(times) + 1 for times in trial.token_us) - 1
        tokens, spans = batch * steps, _whole(spans)
        prompt_tokens = trial.prompt_tokens * len(trial.prefills)
        prefill = _window(samples, _whole(trial.prefills), prompt_tokens, source, idle_w)
    decode = _window(samples, spans, tokens, source, idle_w) if tokens > 0 else None
    return replace(
        trial,
        prefill_energy=prefill,
        decode_energy=decode,
        energy_j=decode.joules if decode else None,
        energy_coverage=decode.coverage if decode else None,
    )


def _whole(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(spans[0][0], spans[-1][1])] if spans else []


def _window(
    samples: Sequence[Sample],
    spans: Sequence[tuple[int, int]],
    tokens: int,
    source: str,
    idle_w: float | None,
) -> EnergyWindow | None:
    """The sum over the spans; without a total where one of them has none."""
    lengths_ns = [end_ns - begin_ns for begin_ns, end_ns in spans]
    if sum(lengths_ns) <= 0:
        return None
    parts = [integrate(samples, *span) for span in spans]
    covered_ns = sum(p.coverage * ns for p, ns in zip(parts, lengths_ns, strict=True))
    window = EnergyWindow(
        window_s=sum(lengths_ns) / 1e9,
        tokens=tokens,
        missing=next(filter(None, (_missing(part, source) for part in parts)), None),
        joules=_sums([part.joules for part in parts]),
        beside=_sums([part.beside for part in parts]),
        coverage=covered_ns / sum(lengths_ns),
        edge_error_j=sum(part.edge_error_j for part in parts),
        records=sum(part.records for part in parts),
        thermal_worst=worst_thermal([part.thermal_worst for part in parts]),
    )
    if idle_w is None or window.power_w is None or window.power_w > LEAST_RISE * idle_w:
        return window
    reason = (
        f"the energy is INVALID, because {source} does not move: it read {window.power_w:.1f} W in "
        f"a window and {idle_w:.1f} W when idle: type `edge doctor --meter`"
    )
    return replace(window, missing=reason)


def _sums(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    rails = dict.fromkeys(rail for part in parts for rail in part)
    return {rail: sum(part.get(rail, 0.0) for part in parts) for rail in rails}


def _missing(energy: Energy, source: str) -> str | None:
    if energy.coverage <= 0 or not energy.joules:
        return f"no sample of {source} covers the window"
    if energy.coverage < MIN_COVERAGE:
        return f"the samples of {source} cover {energy.coverage:.0%} of a window: measure again"
    if not energy.is_total:
        return f"the CPU's counter of {source} failed, so that no total is known: measure again"
    return None


def power_series(samples: Sequence[Sample]) -> PowerSeries | None:
    """Samples as milliwatts per rail, with the changes of the thermal level.

    Neighbours are merged to at most `KEPT_SAMPLES`, which keeps joules but not peaks. None
    without samples.
    """
    timed = [s for s in samples if s.end_ns > s.begin_ns]
    if not timed:
        return None
    size = -(-len(timed) // KEPT_SAMPLES)
    groups = [timed[first : first + size] for first in range(0, len(timed), size)]
    rails = sorted({rail for sample in timed for rail in sample.joules})
    changes: list[ThermalChange] = []
    for group in groups:
        level = worst_thermal([s.thermal for s in group])
        if level is not None and (not changes or changes[-1].level != level):
            changes.append(ThermalChange(begin_ns=group[0].begin_ns, level=level))
    return PowerSeries(
        begin_ns=[group[0].begin_ns for group in groups],
        end_ns=[group[-1].end_ns for group in groups],
        milliwatts={rail: [_milliwatts(group, rail) for group in groups] for rail in rails},
        thermal=changes,
    )


def _milliwatts(group: Sequence[Sample], rail: str) -> int:
    seconds = sum(s.end_ns - s.begin_ns for s in group) / 1e9
    return round(1000 * sum(s.joules.get(rail, 0.0) for s in group) / seconds)

"""Energy of a trial's windows, and a process's power over time as a profile keeps it."""

from collections.abc import Sequence

from msgspec.structs import replace

from edge.power.meter import Energy, Sample, integrate, worst_thermal
from edge.profile.trial import EnergyWindow, PowerSeries, ThermalChange, Trial

# Share of a window that samples must cover.
MIN_COVERAGE = 0.99
# About 25 bytes each in the file; more than a plot has pixels.
KEPT_SAMPLES = 1000


def with_energy(trial: Trial, samples: Sequence[Sample], source: str) -> Trial:
    """The trial with the energy of both windows; unchanged without samples.

    A window reaches from the first stamp of all passes to the last. The decode window holds the
    work of all tokens but the first. `source` names the meter in the reasons.
    """
    if not samples:
        return trial
    prompt_tokens = trial.prompt_tokens * len(trial.prefills)
    tokens = sum(len(times) + 1 for times in trial.token_us) - 1
    decode = _window(samples, trial.passes, tokens, source) if tokens > 0 else None
    return replace(
        trial,
        prefill_energy=_window(samples, trial.prefills, prompt_tokens, source),
        decode_energy=decode,
        energy_j=decode.joules if decode else None,
        energy_coverage=decode.coverage if decode else None,
    )


def _window(
    samples: Sequence[Sample], passes: Sequence[tuple[int, int]], tokens: int, source: str
) -> EnergyWindow | None:
    if not passes or passes[-1][1] <= passes[0][0]:
        return None
    begin_ns, end_ns = passes[0][0], passes[-1][1]
    energy = integrate(samples, begin_ns, end_ns)
    window_s, missing = (end_ns - begin_ns) / 1e9, _missing(energy, source)
    return EnergyWindow(window_s=window_s, tokens=tokens, missing=missing, **vars(energy))


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
    rails = sorted({rail for group in groups for s in group for rail in s.joules})
    return PowerSeries(
        begin_ns=[group[0].begin_ns for group in groups],
        end_ns=[group[-1].end_ns for group in groups],
        milliwatts={rail: [_milliwatts(group, rail) for group in groups] for rail in rails},
        thermal=_changes(groups),
    )


def _milliwatts(group: Sequence[Sample], rail: str) -> int:
    seconds = sum(s.end_ns - s.begin_ns for s in group) / 1e9
    return round(1000 * sum(s.joules.get(rail, 0.0) for s in group) / seconds)


def _changes(groups: Sequence[Sequence[Sample]]) -> list[ThermalChange]:
    changes: list[ThermalChange] = []
    for group in groups:
        level = worst_thermal([s.thermal for s in group])
        if level is not None and (not changes or changes[-1].level != level):
            changes.append(ThermalChange(begin_ns=group[0].begin_ns, level=level))
    return changes

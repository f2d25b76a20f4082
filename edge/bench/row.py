"""From what a worker reported to a row: quantities, reasons, verdict."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.bench.job import Job
from edge.bench.profile import Row, Verdict
from edge.bench.runner import Outcome
from edge.bench.statistics import Quantity, summarise
from edge.bench.trial import Trial
from edge.power.meter import Energy, Meter, Sample, integrate

# pyperf's practice: a spread of 10 % is unstable, and a value should take 0.1 s or more.
MAX_RELATIVE_SD = 0.10
MIN_TRIALS = 3
MIN_DECODE_S = 0.1


@dataclass(frozen=True)
class Subject:
    """The artefact that a row is about; `notes` is what its conversion lost or changed."""

    artefact: str
    framework: str
    precision: str
    file_bytes: int
    bits_per_weight: float
    notes: tuple[str, ...] = ()


def build_row(subject: Subject, outcome: Outcome, meter: Meter, samples: Sequence[Sample]) -> Row:
    """Compute everything that a row says.

    Args:
        subject: what was measured.
        outcome: what its worker reported.
        meter: where power came from.
        samples: the meter's samples, covering the worker's time.
    """
    counted = [t for t in outcome.trials if not t.warmup]
    energies = [_energy(t, samples) for t in counted]
    # A failed row keeps its trials, but no figure that could be quoted.
    usable = counted if outcome.failure is None else []
    decode = summarise(t.decode_tok_s for t in usable)
    prefill = summarise(t.prefill_tok_s for t in usable)
    reasons, verdict = _judge(outcome, counted, decode, prefill)
    power = summarise(map(_power_w, usable, energies))
    return Row(
        artefact=subject.artefact,
        engine=outcome.job.engine,
        framework=subject.framework,
        precision=subject.precision,
        workload=outcome.job.workload,
        file_bytes=subject.file_bytes,
        bits_per_weight=subject.bits_per_weight,
        bytes_per_token=_bytes_per_token(outcome),
        decode_tok_s=decode,
        prefill_tok_s=prefill,
        ttft_s=summarise(t.ttft_s for t in usable),
        power_w=power,
        joules_per_token=summarise(map(_joules_per_token, usable, energies)),
        joules_per_token_net=None,
        peak_memory_bytes=outcome.peak_memory_bytes,
        bandwidth_fraction=None,
        quality=None,
        verdict=verdict,
        reasons=[
            *reasons,
            *(note.rstrip(".") for note in subject.notes),
            *_absences(outcome, meter, power),
        ],
        load_s=outcome.load_s,
        engine_facts=asdict(outcome.facts) if outcome.facts else None,
        trials=[_trial_dict(t, e) for t, e in _with_energies(outcome.trials, samples)],
    )


def _judge(
    outcome: Outcome,
    counted: Sequence[Trial],
    decode: Quantity | None,
    prefill: Quantity | None,
) -> tuple[list[str], Verdict]:
    """What is wrong with the measurement, each with the next thing to try."""
    if outcome.failure is not None:
        return [_without_folders(outcome.failure, outcome.job)], "INVALID"
    warnings = []
    if len(counted) < MIN_TRIALS:
        trials = "1 trial" if len(counted) == 1 else f"{len(counted)} trials"
        warnings.append(f"only {trials}: use -r {MIN_TRIALS} or more")
    for name, quantity, flag in (("decode", decode, "-n"), ("prefill", prefill, "-p")):
        if quantity is not None and quantity.relative_sd > MAX_RELATIVE_SD:
            warnings.append(
                f"{name} varies by {quantity.relative_sd:.0%} between trials: close other "
                f"programs, and use more or longer trials (-r, {flag})"
            )
    if decode is not None:
        shortest_s = min(t.decode_s or 0.0 for t in counted)
        if shortest_s < MIN_DECODE_S:
            warnings.append(
                f"the decode window is {shortest_s:.2g} s, too short to quote: use a larger -n"
            )
    return warnings, "WARN" if warnings else "VALID"


def _without_folders(text: str, job: Job) -> str:
    """A profile is made to be shared: it names the artefact, not where it lies."""
    return text.replace(f"{Path(job.path).parent}{os.sep}", "").replace(str(Path.home()), "~")


def _absences(outcome: Outcome, meter: Meter, power: Quantity | None) -> list[str]:
    """One sentence for every quantity that a finished row does not have."""
    if outcome.failure is not None:
        return ["no quantity was measured: the row failed"]
    workload = outcome.job.workload
    reasons = list(outcome.facts.remarks) if outcome.facts else []
    if workload.generate < 2:
        reasons.append("decode_tok_s needs at least two generated tokens (-n 2)")
    if workload.prompt == 0:
        reasons.append("prefill_tok_s and ttft_s were not measured: no prompt (-p 0)")
    if power is None:
        why = meter.unavailable or f"no sample of {meter.source} covers the decode window"
        reasons.append(f"power_w and joules_per_token: {why}")
    reasons.append(
        "joules_per_token_net, bandwidth_fraction and quality are not measured by this version"
    )
    return reasons


def _bytes_per_token(outcome: Outcome) -> int | None:
    if outcome.facts is None:
        return None
    middle = outcome.job.workload.depth + outcome.job.workload.generate // 2
    return outcome.facts.weight_bytes_per_token + middle * outcome.facts.kv_bytes_per_position


def _energy(trial: Trial, samples: Sequence[Sample]) -> Energy | None:
    """Energy of the decode window, None where no sample reaches it."""
    if not samples or trial.decode_s is None:
        return None
    energy = integrate(samples, trial.token_ns[0], trial.token_ns[-1])
    return energy if energy.coverage > 0 else None


def _power_w(trial: Trial, energy: Energy | None) -> float | None:
    """Mean power over the covered part of the decode window."""
    if energy is None or trial.decode_s is None:
        return None
    return energy.total_j / (trial.decode_s * energy.coverage)


def _joules_per_token(trial: Trial, energy: Energy | None) -> float | None:
    power_w, decode_tok_s = _power_w(trial, energy), trial.decode_tok_s
    return None if power_w is None or not decode_tok_s else power_w / decode_tok_s


def _with_energies(
    trials: Sequence[Trial], samples: Sequence[Sample]
) -> list[tuple[Trial, Energy | None]]:
    return [(t, _energy(t, samples)) for t in trials]


def _trial_dict(trial: Trial, energy: Energy | None) -> dict[str, Any]:
    """Raw stamps and what follows from them."""
    return {
        **asdict(trial),
        "decode_tok_s": trial.decode_tok_s,
        "prefill_tok_s": trial.prefill_tok_s,
        "ttft_s": trial.ttft_s,
        "energy_j": dict(energy.joules) if energy else None,
        "energy_coverage": energy.coverage if energy else None,
    }

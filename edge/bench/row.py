"""From what a row's processes reported to a row: quantities, reasons, verdict."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge.bench.energy import TrialEnergy
from edge.bench.engines.engine import EngineFacts
from edge.bench.gate import Digest, judge, quality_fault
from edge.bench.job import Job
from edge.bench.power_series import power_series
from edge.bench.rounds import ProcessRun
from edge.bench.statistics import summarise
from edge.bench.trial import Trial
from edge.bench.verdict import (
    Judgement,
    judge_conditions,
    judge_energy,
    judge_failure,
    judge_speed,
)
from edge.device.describe import Bandwidth, Device, usable_cores
from edge.device.roofline import fraction_on, on_gpu
from edge.profile.profile import (
    EngineFacts as Facts,
)
from edge.profile.profile import (
    PowerSource,
    Process,
    Quantity,
    Row,
    Verdict,
)
from edge.profile.profile import (
    Quality as RowQuality,
)
from edge.profile.profile import (
    Trial as KeptTrial,
)
from edge.stats import percentiles

NO_QUALITY = "quality was not measured: add --quality"


@dataclass(frozen=True)
class Subject:
    """The artefact that a row is about; `notes` is what its conversion lost or changed."""

    artefact: str
    framework: str
    precision: str
    file_bytes: int
    bits_per_weight: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a row needs to know beyond its own processes.

    `idle_w` is the machine's power without work; `idle_doubt` a sentence if that moved;
    `references` from `edge.bench.gate.reference_job`, `quality` from `edge.quality`, with
    `no_quality` as the sentence where that failed.
    """

    rounds: int = 1
    device: Device | None = None
    idle_w: float | None = None
    idle_doubt: str | None = None
    references: Mapping[str, Digest] | None = None
    quality: Mapping[str, dict[str, Any]] | None = None
    no_quality: str | None = None

    def quality_of(self, subject: Subject, job: Job) -> dict[str, Any] | None:
        """The artefact's, where the row runs it as it was judged."""
        if self.quality is None or job.kv_bits is not None:
            return None
        return self.quality.get(subject.artefact)


@dataclass(frozen=True)
class _Measured:
    """The trials that count, with their energy."""

    runs: Sequence[ProcessRun]
    trials: Sequence[Trial]
    energies: Sequence[TrialEnergy]

    def over_trials(self, values: Iterable[float | None]) -> Quantity | None:
        """Summarised with the process as the unit of the interval."""
        return summarise(values, groups=[t.round for t in self.trials])


def build_row(
    subject: Subject, job: Job, runs: Sequence[ProcessRun], context: Context | None = None
) -> Row:
    """Compute everything that a row says.

    Args:
        subject: what was measured.
        job: the work of each of its processes.
        runs: its processes so far, in the order of time.
        context: the run around it.
    """
    context = context or Context()
    failed = any(run.outcome.failure for run in runs)
    # A failed row keeps its trials, but no figure that could be quoted.
    measured = _measured([] if failed else runs)
    facts = next((r.outcome.facts for r in reversed(runs) if r.outcome.facts), None)
    decode = measured.over_trials(t.decode_tok_s for t in measured.trials)
    bytes_per_token = _bytes_per_token(job, facts)
    reached, doubt = _bandwidth_fraction(facts, decode, bytes_per_token, context.device)
    judgement = _judge(measured, runs, job, context)
    if not failed and (fault := _wrong_logits(subject, job, runs, context)) is not None:
        judgement = judgement.with_("INVALID", [fault])
    quality = None if failed else context.quality_of(subject, job)
    if quality is not None and (fault := quality_fault(quality, subject.precision)) is not None:
        judgement = judgement.with_("INVALID", [fault])
    if reached is not None and doubt is not None:
        judgement = judgement.with_(_above_ceiling(facts, context.device), [doubt])
    row = Row(
        artefact=subject.artefact,
        engine=job.engine,
        framework=subject.framework,
        precision=subject.precision,
        workload=job.workload,
        file_bytes=subject.file_bytes,
        bits_per_weight=subject.bits_per_weight,
        bytes_per_token=bytes_per_token,
        decode_tok_s=decode,
        prefill_tok_s=measured.over_trials(t.prefill_tok_s for t in measured.trials),
        ttft_s=measured.over_trials(t.ttft_s for t in measured.trials),
        **_energy_quantities(measured, context),
        peak_memory_bytes=_most(run.outcome.peak_memory_bytes for run in runs),
        peak_device_bytes=_most(run.outcome.peak_device_bytes for run in runs),
        bandwidth_fraction=reached,
        quality=None if quality is None else msgspec.convert(quality, RowQuality),
        verdict=judgement.verdict,
        reasons=[],
        load_s=_median(run.outcome.load_s for run in runs),
        engine_facts=msgspec.convert(asdict(facts), Facts) if facts else None,
        token_latency_ms=_latency_ms(measured.trials),
        power=_power(runs),
        processes=[msgspec.convert(_process_dict(run), Process) for run in runs],
        trials=[
            msgspec.convert(_trial_dict(t, e), KeptTrial) for run in runs for t, e in run.trials
        ],
    )
    absences = []
    if not failed:
        no_ceiling = doubt if reached is None else None
        checked = context.references is not None
        absences = _absences(row, measured, facts, no_ceiling, checked)
        absences += _quality_absences(quality, job, context)
    row.reasons.extend(
        dict.fromkeys(
            _without_folders(reason.rstrip("."), job)
            for reason in (*judgement.reasons, *subject.notes, *absences)
        )
    )
    if failed:
        row.reasons.append("no quantity was measured: the row failed")
    return row


def _measured(runs: Sequence[ProcessRun]) -> _Measured:
    pairs = [pair for run in runs for pair in run.trials if not pair[0].warmup]
    return _Measured(runs, [t for t, _ in pairs], [e for _, e in pairs])


def _judge(
    measured: _Measured, runs: Sequence[ProcessRun], job: Job, context: Context
) -> Judgement:
    """Speed, then the machine's state, then energy."""
    if any(run.outcome.failure for run in runs):
        return judge_failure(runs, context.rounds)
    threads = _threads(job, runs, context.device)
    judgement = judge_speed(measured.trials, job.min_window_s, len(runs), context.rounds)
    others = [judge_conditions(runs, threads), judge_energy(measured.energies, _flags(runs))]
    for other in others:
        judgement = judgement.with_(other.verdict, other.reasons)
    if context.idle_doubt is not None and any(e.decode for e in measured.energies):
        judgement = judgement.with_("WARN", [context.idle_doubt])
    return judgement


def _threads(job: Job, runs: Sequence[ProcessRun], device: Device | None) -> int:
    """How many a row keeps busy by itself; one that feeds it where it runs on a GPU."""
    facts = next((run.outcome.facts for run in runs if run.outcome.facts), None)
    if facts is not None and on_gpu(facts.device, device.gpu_name if device else None):
        return 1
    return job.threads if job.engine == "llama.cpp" else usable_cores()


def _wrong_logits(
    subject: Subject, job: Job, runs: Sequence[ProcessRun], context: Context
) -> str | None:
    """What the correctness gate says; the first round's process reported logits."""
    if context.references is None:
        return None
    digest = next(run.outcome.logits for run in runs if run.outcome.logits)
    return judge(context.references, job.path, digest, subject.precision, job.engine, job.kv_bits)


def _energy_quantities(measured: _Measured, context: Context) -> dict[str, Quantity | None]:
    decode = [e.decode for e in measured.energies]
    prefill = [e.prefill for e in measured.energies]
    over, idle_w = measured.over_trials, context.idle_w
    return {
        "power_w": over(w.power_w if w else None for w in decode),
        "joules_per_token": over(w.joules_per_token if w else None for w in decode),
        "joules_per_token_net": over(w.net_joules_per_token(idle_w) if w else None for w in decode),
        "prefill_power_w": over(w.power_w if w else None for w in prefill),
        "prefill_joules_per_token": over(w.joules_per_token if w else None for w in prefill),
    }


def _absences(
    row: Row,
    measured: _Measured,
    facts: EngineFacts | None,
    no_ceiling: str | None,
    checked: bool,
) -> list[str]:
    """One sentence for every quantity that a finished row does not have."""
    reasons = list(facts.remarks) if facts else []
    reasons += [run.outcome.bad_end for run in measured.runs if run.outcome.bad_end]
    if not checked:
        reasons.append("its logits were not compared with the checkpoint's")
    if row.workload.generate < 2:
        reasons.append("decode_tok_s needs at least two generated tokens (-n 2)")
    if row.workload.prompt == 0:
        reasons.append("prefill_tok_s and ttft_s were not measured: no prompt (-p 0)")
    if no_ceiling is not None:
        reasons.append(no_ceiling)
    return reasons + _energy_absences(row, measured)


def _quality_absences(quality: dict[str, Any] | None, job: Job, context: Context) -> list[str]:
    if quality is not None:
        return [f"quality: {reason}" for reason in quality["reasons"]]
    if context.quality is not None and job.kv_bits is not None:
        return [f"quality was not measured with a cache of {job.kv_bits} bits (--kv-bits)"]
    return [context.no_quality or NO_QUALITY]


def _energy_absences(row: Row, measured: _Measured) -> list[str]:
    """Why energy, or some of it, is null."""
    windows = [w for e in measured.energies for w in (e.prefill, e.decode)]
    missing = list(dict.fromkeys(w.missing for w in windows if w and w.missing))
    if row.power_w is None and row.prefill_power_w is None:
        why = missing or [_no_samples(measured.runs)]
        return [f"power_w, joules_per_token and their like: {'; '.join(why)}"]
    reasons = [f"power is null for a part of the trials: {why}" for why in missing]
    if row.power_w is not None and row.joules_per_token_net is None:
        reasons.append("joules_per_token_net: idle power was not measured (--idle)")
    return reasons


def _no_samples(runs: Sequence[ProcessRun]) -> str:
    meter = next((run.meter for run in runs), None)
    if meter is None:
        return "nothing was measured"
    flags = "; ".join(meter.flags)
    none = f"no sample of {meter.source} covers the decode window"
    return meter.unavailable or (f"{none} ({flags})" if flags else none)


def _bytes_per_token(job: Job, facts: EngineFacts | None) -> int | None:
    if facts is None:
        return None
    middle = job.workload.decode_depth + job.workload.generate // 2
    return facts.weight_bytes_per_token + middle * facts.kv_bytes_per_position


def _bandwidth_fraction(
    facts: EngineFacts | None,
    decode: Quantity | None,
    bytes_per_token: int | None,
    device: Device | None,
) -> tuple[float | None, str | None]:
    """Share of the device's memory bandwidth; a sentence where it is None or impossible."""
    if facts is None or decode is None or not bytes_per_token:
        return None, None  # a failed row and one without decoding have their sentence already
    if device is None:
        return None, "bandwidth_fraction: the device is not known"
    return fraction_on(
        device, on_gpu(facts.device, device.gpu_name), decode.median, bytes_per_token
    )


def _above_ceiling(facts: EngineFacts | None, device: Device | None) -> Verdict:
    """INVALID, unless the ceiling itself was measured here, where other programs may run."""
    if facts is None or device is None:
        return "INVALID"
    bandwidth: Bandwidth | None = device.memory_bandwidth
    if on_gpu(facts.device, device.gpu_name) and device.gpu_memory_bandwidth is not None:
        bandwidth = device.gpu_memory_bandwidth
    return "WARN" if bandwidth and bandwidth.kind == "measured" else "INVALID"


def _latency_ms(trials: Sequence[Trial]) -> dict[str, float] | None:
    """Percentiles over every token but the first of each pass."""
    times_ns = [ns for trial in trials for ns in trial.token_times_ns]
    if not times_ns:
        return None
    return {name: ns / 1e6 for name, ns in percentiles(times_ns).items()}


def _power(runs: Sequence[ProcessRun]) -> PowerSource | None:
    """Where watts came from, None where nothing measured."""
    meter = next((run.meter for run in runs if run.samples), None)
    if meter is None:
        return None
    return PowerSource(meter.source, meter.boundary, _flags(runs))


def _flags(runs: Sequence[ProcessRun]) -> list[str]:
    return list(dict.fromkeys(flag for run in runs for flag in run.meter.flags))


def _process_dict(run: ProcessRun) -> dict[str, Any]:
    """What a profile keeps of one process."""
    outcome = run.outcome
    return {
        "round": run.round,
        "load_s": outcome.load_s,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "peak_device_bytes": outcome.peak_device_bytes,
        "failed": outcome.failure is not None,
        "waited_s": run.cooled.waited_s,
        "unsettled": run.cooled.unsettled,
        "before": asdict(run.before),
        "after": asdict(run.after),
        "power_series": power_series(run.samples),
    }


def _trial_dict(trial: Trial, energy: TrialEnergy) -> dict[str, Any]:
    """Raw stamps and what follows from them."""
    return {
        **trial.to_record(),
        "energy_j": dict(energy.decode.energy.joules) if energy.decode else None,
        "energy_coverage": energy.decode.energy.coverage if energy.decode else None,
        "decode_energy": energy.decode.to_record() if energy.decode else None,
        "prefill_energy": energy.prefill.to_record() if energy.prefill else None,
    }


def _without_folders(text: str, job: Job) -> str:
    """A profile is made to be shared: it names the artefact, not where it lies."""
    return text.replace(f"{Path(job.path).parent}{os.sep}", "").replace(str(Path.home()), "~")


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None

"""A row of the profile from the reports of its processes: quantities, reasons, verdict."""

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from edge.bench.engines.engine import LLAMA_CPP, SERVER
from edge.bench.gate import Digest, logits_error, quality_error, shapes_error, with_reference
from edge.bench.plan import Target
from edge.bench.runner import ProcessRun
from edge.bench.trial import kept_times, power_series
from edge.bench.verdict import judge_conditions, judge_energy, judge_requests, judge_speed
from edge.bench.worker import Done, Job
from edge.device.describe import Device, usable_cores
from edge.profile.gate import Gate
from edge.profile.profile import (
    EngineFacts,
    ModelInfo,
    PowerSource,
    Quality,
    Quantity,
    Reason,
    Row,
)
from edge.profile.trial import EnergyWindow, Process, Trial
from edge.profile.verdict import VERDICTS, judge_bandwidth, summarise, warning, worst_first
from edge.stats import percentiles

IDENTITY = attrgetter("name", "parameters", "synthetic")  # of a model


@dataclass(frozen=True)
class Context:
    """Facts about the whole run; `model` is that of the profile.

    `idle_drift` is the warning where the idle power `idle_w` changed. `quality` is by artefact
    from `edge.quality`, `no_quality` the reason where it is None, `no_check` one for a missing
    comparison of logits, empty if another reason says so. `beside` are warnings of what a run of
    --each has on this machine besides.
    """

    rounds: int
    device: Device
    model: ModelInfo
    idle_w: float | None = None
    idle_drift: str | None = None
    references: Mapping[str, Digest] | None = None
    quality: Mapping[str, dict[str, Any]] | None = None
    no_quality: str = "quality was not measured: add --quality"
    beside: Sequence[str] = ()
    no_check: str = "its logits were not compared with the checkpoint's"


def build_row(target: Target, job: Job, runs: Sequence[ProcessRun], context: Context) -> Row:
    """The row of processes in order of time; a failed one keeps its trials, but has no figures."""
    failed = next((run for run in runs if run.outcome.failure), None)
    done = [run.outcome.done for run in runs if run.outcome.done]
    trials = [t for run in runs for t in run.outcome.trials if not (failed or t.warmup)]
    facts = done[-1].facts if done else None
    meter = next((run.meter for run in runs if run.samples), None)
    loads_s = [each.load_s for each in done if each.load_s is not None]
    quality, quality_reasons = _quality(target, job, context)
    row = Row(
        artefact=target.recipe.name,
        engine=job.engine,
        framework=target.recipe.framework,
        precision=target.recipe.precision,
        workload=job.workload,
        file_bytes=target.file_bytes,
        bits_per_weight=target.bits_per_weight,
        bytes_per_token=_bytes_per_token(job, facts),
        **_quantities(trials, context.idle_w),
        peak_memory_bytes=_most(each.peak_memory_bytes for each in done),
        peak_device_bytes=_most(each.peak_device_bytes for each in done),
        bandwidth_fraction=None,
        quality=None if failed else quality,
        verdict="VALID",
        reasons=[],
        load_s=statistics.median(loads_s) if loads_s else None,
        engine_facts=facts,
        token_latency_ms=_latency_ms(trials),
        power=PowerSource(meter.source, meter.boundary, _flags(runs)) if meter else None,
        gate=None if failed else _gate(job, done, context),
        model=None if IDENTITY(target.model) == IDENTITY(context.model) else target.model,
        arm=job.arm or None,
        baseline=None,  # with every row built, `with_ratios` knows it
        ratios={},
        source=None,
        processes=[_process(run) for run in runs],
        trials=[
            msgspec.structs.replace(trial, token_us=kept_times(trial.token_us))
            for run in runs
            for trial in run.outcome.trials
        ],
    )
    share, reasons = judge_bandwidth(row, context.device)
    if failed:
        where = f" (round {failed.round + 1} of {context.rounds})" if context.rounds > 1 else ""
        text = f"{(failed.outcome.failure or '').rstrip('.')}{where}"
        reasons.append(Reason("", "error", text))
        reasons += _notes(*target.notes, "no quantity was measured: the row failed")
    else:
        reasons += [*_warnings(row, job, runs, context), *_errors(row, job, done, context)]
        reasons += [*_notes(*target.notes), *_absences(row, runs, context)]
        reasons += quality_reasons
    reasons = worst_first(reasons)
    return msgspec.structs.replace(
        row,
        bandwidth_fraction=share,
        verdict=VERDICTS[reasons[0].level] if reasons else "VALID",
        reasons=[_without_folders(str(reason).rstrip("."), job) for reason in reasons],
    )


def _quantities(trials: Sequence[Trial], idle_w: float | None) -> dict[str, Quantity | None]:
    decode, prefill = [t.decode_energy for t in trials], [t.prefill_energy for t in trials]
    values: dict[str, list[float | None]] = {
        "decode_tok_s": [t.decode_tok_s for t in trials],
        "prefill_tok_s": [t.prefill_tok_s for t in trials],
        "ttft_s": [t.ttft_s for t in trials],
        "power_w": [w.power_w if w else None for w in decode],
        "joules_per_token": [w.joules_per_token if w else None for w in decode],
        "joules_per_token_net": [_net_joules_per_token(w, idle_w) for w in decode],
        "prefill_power_w": [w.power_w if w else None for w in prefill],
        "prefill_joules_per_token": [w.joules_per_token if w else None for w in prefill],
    }
    rounds = [t.round for t in trials]
    return {name: summarise(listed, rounds) for name, listed in values.items()}


def _net_joules_per_token(window: EnergyWindow | None, idle_w: float | None) -> float | None:
    if window is None or window.joules_per_token is None or idle_w is None:
        return None
    return window.joules_per_token - idle_w * window.window_s / window.tokens


def _bytes_per_token(job: Job, facts: EngineFacts | None) -> int | None:
    """Bytes that a decode step reads for one token: its share of the weights, which a batch reads
    once, and its sequence's cache in the middle of the window.
    """
    if facts is None or job.engine == SERVER:
        return None
    middle = job.workload.decode_depth + job.workload.generate // 2
    weight_bytes = (facts.weight_bytes_per_token or 0) // job.workload.batch
    return weight_bytes + middle * (facts.kv_bytes_per_position or 0)


def _latency_ms(trials: Sequence[Trial]) -> dict[str, float] | None:
    times_us = [us for trial in trials for times in trial.token_us for us in times]
    if not times_us:
        return None
    return {name: us / 1000 for name, us in percentiles(times_us).items()}


def _flags(runs: Sequence[ProcessRun]) -> list[str]:
    return list(dict.fromkeys(flag for run in runs for flag in run.meter.flags))


def _process(run: ProcessRun) -> Process:
    known = ("load_s", "peak_memory_bytes", "peak_device_bytes")
    return Process(
        round=run.round,
        **{name: getattr(run.outcome.done, name, None) for name in known},
        failed=run.outcome.failure is not None,
        waited_s=run.cooldown.waited_s,
        unsettled=run.cooldown.timed_out,
        before=asdict(run.before),
        after=asdict(run.after),
        power_series=power_series(run.samples),
    )


def _quality(target: Target, job: Job, context: Context) -> tuple[Quality | None, list[Reason]]:
    found = None
    if context.quality is None:
        texts = [context.no_quality]
    elif job.kv_bits is not None:
        texts = [f"quality was not measured with a cache of {job.kv_bits} bits (--kv-bits)"]
    else:
        fields = context.quality[target.recipe.name]
        found, texts = msgspec.convert(fields, Quality), fields["reasons"]
    return found, [Reason("quality", "reason", text) for text in texts]


def _gate(job: Job, done: Sequence[Done], context: Context) -> Gate | None:
    gate = next((each.gate for each in done if each.gate), None)
    logits = next((each.logits for each in done if each.logits), None)
    if gate is None or logits is None or context.references is None:
        return gate
    own = context.references[job.path]
    return with_reference(gate, own, logits, job.engine, job.kv_bits)


def _warnings(row: Row, job: Job, runs: Sequence[ProcessRun], context: Context) -> Iterator[Reason]:
    yield from judge_speed(row.counted, job.min_window_s, len(runs), context.rounds)
    busy_threads = job.threads if job.engine == LLAMA_CPP else usable_cores()
    yield from judge_conditions(runs, 1 if row.on_gpu(context.device) else busy_threads)
    longer = "raise --min-window"
    if job.engine == SERVER:
        yield from judge_requests(row.counted, job.workload)
        longer = "raise -n"  # more requests also have more edges
    yield from judge_energy(_windows(row), _flags(runs), longer)
    for run in runs:
        yield from map(warning, run.outcome.done.warnings if run.outcome.done else ())
    yield from map(warning, context.beside)
    if context.idle_drift is not None and row.power_w is not None:
        yield warning(context.idle_drift)


def _windows(row: Row) -> list[EnergyWindow]:
    pairs = [pair for t in row.counted for pair in (t.decode_energy, t.prefill_energy)]
    return [window for window in pairs if window is not None]


def _errors(row: Row, job: Job, done: Sequence[Done], context: Context) -> Iterator[Reason]:
    if row.gate is not None:
        if error := shapes_error(row.gate):
            yield Reason("", "error", error)
        if context.references is not None:
            digest = next(each.logits for each in done if each.logits)
            asked = job.path, digest, row.precision, row.gate
            if error := logits_error(context.references, *asked):
                yield Reason("", "error", error)
    if row.quality is not None and (error := quality_error(row.quality, row.precision)):
        yield Reason("", "error", error)


def _absences(row: Row, runs: Sequence[ProcessRun], context: Context) -> Iterator[Reason]:
    """Reasons for the quantities that a finished row lacks, and for missing checks."""
    yield from _notes(*(row.engine_facts.remarks if row.engine_facts else ()))
    yield from _notes(*(run.outcome.bad_end for run in runs if run.outcome.bad_end))
    if context.references is None and context.no_check:
        yield from _notes(context.no_check)
    if row.workload.generate < 2:
        yield from _notes("decode_tok_s needs at least two generated tokens (-n 2)")
    if row.workload.prompt == 0:
        yield from _notes("prefill_tok_s and ttft_s were not measured: no prompt (-p 0)")
    missing = list(dict.fromkeys(w.missing for w in _windows(row) if w.missing))
    if row.power_w is None and row.prefill_power_w is None:
        meter = runs[0].meter
        flags = f" ({'; '.join(meter.flags)})" if meter.flags else ""
        none = f"no sample of {meter.source} covers the decode window{flags}"
        why = "; ".join(missing) or meter.unavailable or none
        yield from _notes(f"power_w, joules_per_token and their like: {why}")
    else:
        yield from _notes(*(f"power is null for a part of the trials: {why}" for why in missing))
    if row.power_w is not None and row.joules_per_token_net is None:
        yield Reason("joules_per_token_net", "reason", "idle power was not measured (--idle)")


def _notes(*texts: str) -> list[Reason]:
    return [Reason("", "reason", text) for text in texts]


def _without_folders(text: str, job: Job) -> str:
    """Profiles are shared, so they name the artefact without its folder."""
    return text.replace(f"{Path(job.path).parent}{os.sep}", "").replace(str(Path.home()), "~")


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)

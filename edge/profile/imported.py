"""Other programs' results as a profile: judged as our own are, with their origin in every row.

What a file does not say is a warning with what to do; nothing is guessed.
"""

import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

import edge
from edge.device.chips import APPLE_CACHE_BYTES, find_chip, variants
from edge.device.describe import APPLE, Bandwidth, Device
from edge.profile.foreign import LLAMA_BENCH, MLX_LM_BENCHMARK, NOT_STATED, Result, read_results
from edge.profile.profile import (
    SCHEMA,
    Method,
    ModelInfo,
    Profile,
    ProfileError,
    Reason,
    Row,
)
from edge.profile.verdict import (
    MAX_RELATIVE_SD,
    MIN_TRIALS,
    VERDICTS,
    judge_bandwidth,
    judge_spread,
    summarise,
    warning,
    worst_first,
)
from edge.text import plain

RATES = {"decode_tok_s": "decode", "prefill_tok_s": "prefill"}
# Both are the rate of a step: t_0 is the begin, so that N steps take from t_0 to t_N.
STEP_RATE = "N / (t_N - t_0) of a repetition"
OWN_STEP_RATE = "sum of (N - 1) / sum of (t_N - t_1) over a trial's passes"
NOT_TIMED = ["load", "tokenisation", "sampling", "detokenisation", "trimming the cache"]
NULLS = (*RATES, *("ttft_s", "power_w", "joules_per_token", "peak_memory_bytes", "quality"))
# The weights contain the embedding table, which a token does not read: of small models an eighth.
MAX_EMBEDDINGS = 0.15
CHIP = re.compile(r"(?:apple )?m(\d+)( pro| max| ultra)?", re.IGNORECASE)


@dataclass(frozen=True)
class Program:
    """A benchmark's method; `repeat` and `generate` are its options for more of both."""

    method: Method
    repeat: str
    generate: str


LLAMA_BENCH_METHOD = Method(decode_rate=STEP_RATE, excluded=NOT_TIMED)
MLX_LM_METHOD = Method(decode_rate="(N - 1) / (t_N - t_1)", excluded=NOT_TIMED[:2])
PROGRAMS = {
    LLAMA_BENCH: Program(LLAMA_BENCH_METHOD, "-r", "-n"),
    MLX_LM_BENCHMARK: Program(MLX_LM_METHOD, "-n", "-g"),
}


@dataclass(frozen=True)
class Told:
    """What the user adds to results that do not say it."""

    chip: str | None = None
    model: str | None = None
    bandwidth_gb_s: float | None = None
    on_mains: bool = False


NOTHING_TOLD = Told()


@dataclass(frozen=True)
class Judged:
    """The verdict on a result that `source` measured."""

    file: str
    source: str
    result: str
    verdict: str
    reasons: list[str]

    def __str__(self) -> str:
        head = f"{self.file}: {self.source}, {self.result}: {self.verdict}"
        return "\n".join([head, *(f"  - {reason}" for reason in self.reasons)])


def import_results(data: bytes, path: Path, told: Told) -> Profile | None:
    """A profile of the results in a file; None for a file of another kind.

    Raises a ProfileError for a broken file, and for one of several machines.
    """
    results = read_results(data, path, told.model)
    if results is None:
        return None
    if not results:
        raise ProfileError(path, "broken", "has no trial: give the whole output")
    if len({(result.chip, result.gpu) for result in results}) > 1:
        reason = "has results of several machines: give the output of one"
        raise ProfileError(path, "broken", reason)
    first, models = results[0], list(dict.fromkeys(result.model for result in results))
    device = _device(first, told, path)
    rows = [_row(result, device, told, len(results)) for result in results]
    build = first.row.engine_facts.build if first.row.engine_facts else None
    return Profile(
        schema=SCHEMA,
        created_utc=_instant(first.time) or datetime.now(UTC).isoformat(timespec="seconds"),
        argv=["report", "--import", path.name],
        device=device,
        software={"edge": edge.__version__, **({"llama.cpp": build} if build else {})},
        model=models[0] if len(models) == 1 else ModelInfo("several models"),
        method=PROGRAMS[first.row.source or ""].method,
        rows=rows if len(models) == 1 else [*map(_with_model, rows, results)],
    )


def _with_model(row: Row, result: Result) -> Row:
    return replace(row, model=result.model, artefact=f"{row.artefact} ({result.model.name})")


def _instant(text: str) -> str | None:
    try:
        found = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return found.isoformat(timespec="seconds")


def _device(result: Result, told: Told, path: Path) -> Device:
    """The machine as far as it is known; a chip that is not in the table has no bandwidth."""
    given, short = plain(told.chip or ""), CHIP.fullmatch(told.chip or "")
    if short:
        given = f"{APPLE}M{short[1]}{(short[2] or '').title()}"
    if given and result.chip not in ("", given):
        reason = f"was measured on {result.chip}, not on {given}: leave out --chip"
        raise ProfileError(path, "broken", reason)
    name = result.chip or given or NOT_STATED
    is_apple, found = name.startswith(APPLE), variants(name)
    bandwidth = Bandwidth(told.bandwidth_gb_s, "given") if told.bandwidth_gb_s else None
    if bandwidth is None and found:  # the highest is a ceiling for all
        best = max(found, key=lambda chip: chip.bandwidth_gb_s)
        bandwidth = Bandwidth(best.bandwidth_gb_s, f"table, {best.sources['bandwidth_gb_s']}")
    _, remark = find_chip(name) if is_apple or not result.gpu else find_chip(result.gpu)
    has_own_memory = bool(result.gpu) and not is_apple
    return Device(
        name=name,
        gpu_name=(name if is_apple else result.gpu) or None,
        memory_bandwidth=None if has_own_memory else bandwidth,
        gpu_memory_bandwidth=bandwidth if has_own_memory else None,
        cache_bytes=APPLE_CACHE_BYTES if is_apple else None,
        remarks=(remark,) if remark and name != NOT_STATED and not told.bandwidth_gb_s else (),
    )


def _row(result: Result, device: Device, told: Told, rows: int) -> Row:
    trials, program = result.row.trials, PROGRAMS[result.row.source or ""]
    rounds = [trial.round for trial in trials]
    row = replace(
        result.row,
        decode_tok_s=summarise([trial.decode_tok_s for trial in trials], rounds),
        prefill_tok_s=summarise([trial.prefill_tok_s for trial in trials], rounds),
    )
    whole = replace(row, bytes_per_token=result.weight_bytes)
    share, found = judge_bandwidth(whole, device, MAX_EMBEDDINGS)
    row = replace(row, bandwidth_fraction=share)
    found = [reason for reason in found if reason.text not in device.remarks]
    doubts = [*result.reasons, *found, *_repetitions(row, program), *_order(row, rows)]
    doubts += [*_unsaid(result, device, told), *_notes(row, result)]
    reasons = worst_first(doubts)
    return replace(
        row,
        verdict=VERDICTS[reasons[0].level],
        reasons=[str(reason) for reason in reasons],
    )


def _repetitions(row: Row, program: Program) -> Iterator[Reason]:
    known = [q.n for q in (row.decode_tok_s, row.prefill_tok_s) if q is not None]
    if known and min(known) < MIN_TRIALS:
        plural = "" if min(known) == 1 else "s"
        yield warning(f"only {min(known)} trial{plural}: use {program.repeat} {MIN_TRIALS} or more")
    for key, flag in (("decode_tok_s", program.generate), ("prefill_tok_s", "-p")):
        rates = [getattr(trial, key) for trial in row.trials]
        yield from judge_spread(RATES[key], rates, f"{program.repeat}, {flag}", "use --delay")


def _order(row: Row, rows: int) -> Iterator[Reason]:
    """Heat and memory of a test are part of the next one's result: do other orders agree?"""
    runs = sorted({trial.round for trial in row.trials})
    if len(runs) == 1 and rows > 1:
        yield warning(
            f"{rows} tests ran once, in a fixed order, so that one can slow the next: run them in "
            f"another order too, and add the output to this file"
        )
    for key, name in RATES.items():
        known = [(t.round, rate) for t in row.trials if (rate := getattr(t, key)) is not None]
        of_runs = [[rate for number, rate in known if number == run] for run in runs]
        means = [statistics.fmean(rates) for rates in of_runs if rates]
        change = max(means) / min(means) - 1 if means else 0.0
        if change > MAX_RELATIVE_SD:
            text = f"{name} differs by {change:.0%} between runs of the same test"
            yield warning(f"{text}: find out what else ran, and let the machine cool in between")


def _unsaid(result: Result, device: Device, told: Told) -> Iterator[Reason]:
    for name, what in ((device.name, "chip"), (result.model.name, "model")):
        if name == NOT_STATED:
            yield warning(f"the {what} is not stated: give it with --{what}")
    if result.row.trials and result.weight_bytes is None:
        text = "how many bytes a token reads is not known: measure with edge bench"
        yield Reason("bandwidth_fraction", "warning", text)
    for remark in device.remarks:
        yield Reason("bandwidth_fraction", "warning", remark)
    if not told.on_mains:
        yield warning("the power source is not stated: add --mains if it was not the battery")


def _notes(row: Row, result: Result) -> Iterator[Reason]:
    if row.bandwidth_fraction is not None:
        text = "bandwidth_fraction is of all weights, the embedding table too"
        yield Reason("", "reason", text)
    nulls = [key for key in NULLS if getattr(row, key) is None]
    yield Reason("", "reason", f"{row.source} measured neither {' nor '.join(nulls)}")
    if not _instant(result.time):
        text = "created_utc is the time of the import, because the file has no date"
        yield Reason("", "reason", text)


def judged_rows(file: str, profile: Profile) -> list[Judged]:
    """The verdicts on an imported profile's rows."""
    return [
        Judged(
            file,
            row.source or "edge",
            f"{(row.model or profile.model).name} {row.artefact}, {row.workload or 'no tokens'}",
            row.verdict,
            row.reasons,
        )
        for row in profile.rows
    ]

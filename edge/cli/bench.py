"""Benchmark a model's artefacts on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from edge.bench.cooldown import Machine, kept_awake
from edge.bench.engines.engine import MLX_LM
from edge.bench.job import MAX_PASSES, Job
from edge.bench.processors import processors_of
from edge.bench.reference import reference_job
from edge.bench.rounds import Run, Settings
from edge.bench.row import Subject
from edge.bench.runner import stopped_by_sigterm
from edge.bench.schedule import rounds_for, trials_per_process
from edge.bench.suites import TABLE_11_SUITE, left_out, workloads
from edge.bench.workload import Workload
from edge.child import run_child
from edge.cli.bench_book import Book
from edge.cli.bench_compare import run_compare
from edge.cli.checkpoint import open_named, output_folder
from edge.cli.options.bench import ENERGY_WINDOW_S, SPEED_WINDOW_S
from edge.cli.progress import progress_bars
from edge.convert.artefacts.recipes import Recipe, find_recipe
from edge.convert.artefacts.sizes import bits_per_weight, file_bytes
from edge.convert.checkpoint import Checkpoint
from edge.convert.convert import convert
from edge.device.describe import describe_device, usable_cores
from edge.device.peak import peak_metric
from edge.device.software import software_versions, tf32_allowed
from edge.errors import EdgeError
from edge.formats.files import atomic_write, check_writable
from edge.power.choose import choose_meter
from edge.power.meter import Meter
from edge.power.powermetrics import forget_probes
from edge.profile.profile import SCHEMA, Method, ModelInfo, Profile
from edge.profile.published import table11_beside
from edge.quality.corpus import check_trained
from edge.report.figure import to_png
from edge.report.markdown import markdown_table
from edge.report.plots import throughput
from edge.report.table import notes

Progress = Callable[[str, float], None]
WARMUPS = 1
QUALITY_REFERENCE = "mlx-fp16"
QUALITY_TIMEOUT_S = 4 * 3600


def run(args: argparse.Namespace) -> int:
    """Convert what is missing, measure round by round, save, plot, print."""
    if args.compare is not None:
        return run_compare(args)
    checkpoint = open_named(args)
    new_meter = _new_meter(args)
    meter = new_meter()
    if args.min_window is None:
        args.min_window = SPEED_WINDOW_S if meter.unavailable else ENERGY_WINDOW_S
    if args.quality is not None:
        check_trained(checkpoint)
    planned = _plan(args, checkpoint)
    check_writable(args.save)
    with stopped_by_sigterm(), progress_bars() as progress, kept_awake():
        subjects = _convert(args, checkpoint, progress)
        rows = [(job, subjects[recipe.name]) for job, recipe in planned]
        run = _new_run(args, [job for job, _ in rows], new_meter, meter.unavailable is None)
        book = Book(
            _new_profile(args, checkpoint),
            rows,
            run.results,
            args.save,
            _references(checkpoint, [job for job, _ in rows]) if args.check else None,
        )
        total = (WARMUPS + rows[0][0].repetitions) * run.settings.rounds
        run.go(book.enter, lambda row, _: progress(*book.progress(row, total)))
        book.close()
        if args.quality is not None:
            book.add_quality(*_quality(args, checkpoint, subjects, progress))
    plots = _plot(book.profile, book.path)
    _print(args, book.profile, [book.path, *plots])
    return 1 if any(row.verdict == "INVALID" for row in book.profile.rows) else 0


def _plan(args: argparse.Namespace, checkpoint: Checkpoint) -> list[tuple[Job, Recipe]]:
    """One job per row and workload, peers right after ours."""
    limit = checkpoint.config.max_position_embeddings
    planned = workloads(args, limit, checkpoint.source.name)
    for longer in left_out(args, limit):
        _warn(f"{longer} is left out: {checkpoint.source.name} was trained for {limit} positions")
    return [
        (_job(args, checkpoint, recipe, engine, workload), recipe)
        for recipe in dict.fromkeys(args.rows)
        for engine in _engines(args, recipe)
        for workload in planned
    ]


def _job(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    recipe: Recipe,
    engine: str,
    workload: Workload,
) -> Job:
    return Job(
        engine=engine,
        path=str(recipe.path_in(output_folder(args.out, checkpoint.source.name))),
        workload=workload,
        vocab_size=checkpoint.config.vocab_size,
        seed=args.seed,
        repetitions=trials_per_process(args.repetitions, args.rounds),
        warmups=WARMUPS,
        threads=args.threads or usable_cores(),
        kv_bits=args.kv_bits,
        min_window_s=args.min_window or 0.0,
    )


def _engines(args: argparse.Namespace, recipe: Recipe) -> list[str]:
    if not recipe.is_mlx:
        return ["llama.cpp"]
    return ["mlx", MLX_LM] if args.peers else ["mlx"]


def _convert(
    args: argparse.Namespace, checkpoint: Checkpoint, progress: Progress
) -> dict[str, Subject]:
    out = output_folder(args.out, checkpoint.source.name)
    parameters = checkpoint.parameters
    return {
        made.recipe.name: Subject(
            artefact=made.recipe.name,
            framework=made.recipe.framework,
            precision=made.recipe.precision,
            file_bytes=file_bytes(made.path),
            bits_per_weight=bits_per_weight(made.path, parameters),
            notes=made.notes,
        )
        for made in convert(checkpoint, _wanted(args), out, progress)
    }


def _wanted(args: argparse.Namespace) -> list[Recipe]:
    """The rows' recipes, and that of what their quality is compared with."""
    reference = [] if args.quality is None else [find_recipe(QUALITY_REFERENCE)]
    return list(dict.fromkeys([*args.rows, *reference]))


def _references(checkpoint: Checkpoint, jobs: list[Job]) -> dict[str, Any] | None:
    """What the correctness gate compares with; None, and a warning, where it cannot be had."""
    try:
        return reference_job(checkpoint, [Path(path) for path in {job.path: None for job in jobs}])
    except EdgeError as error:
        _warn(f"logits are not checked: {error}")
        return None


def _quality(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    subjects: dict[str, Subject],
    progress: Progress,
) -> tuple[dict[str, Any] | None, str | None]:
    """What each artefact loses; None, a warning and the reason where it cannot be measured."""
    out = output_folder(args.out, checkpoint.source.name)
    source = checkpoint.source
    asked = {
        "model": source.origin if source.path is None else str(source.path),
        "corrections": asdict(checkpoint.corrections),
        "artefacts": {name: str(find_recipe(name).path_in(out)) for name in subjects},
        "reference": QUALITY_REFERENCE,
        "folder": str(out / "eval"),
        "threads": args.threads or usable_cores(),
        "tokens": args.quality,
    }
    progress("quality", 0.0)
    try:
        found = run_child("edge.quality.job", asked, QUALITY_TIMEOUT_S, "the quality")
    except EdgeError as error:
        _warn(str(error))
        return None, f"quality: {error}"
    progress("quality", 1.0)
    return found, None


def _new_meter(args: argparse.Namespace) -> Callable[[], Meter]:
    """What makes a meter, `auto` one that covers the processors of the rows."""
    processors: Collection[str] = ()
    if args.power == "auto":
        processors = processors_of(recipe.framework for recipe in args.rows)
    return lambda: choose_meter(args.power, processors)


def _new_run(
    args: argparse.Namespace, jobs: list[Job], new_meter: Callable[[], Meter], has_power: bool
) -> Run:
    settings = Settings(
        rounds=rounds_for(args.repetitions, args.rounds),
        seed=args.seed,
        timeout_s=args.timeout,
        cooldown_s=args.cooldown,
        idle_s=args.idle if has_power else 0.0,
        has_power=has_power,
    )
    forget_probes()  # converting or downloading can take longer than sudo's ticket lasts
    return Run(jobs, settings, Machine(new_meter), notice=_warn)


def _warn(sentence: str) -> None:
    print(f"edge bench: warning: {sentence}", file=sys.stderr)


def _new_profile(args: argparse.Namespace, checkpoint: Checkpoint) -> Profile:
    return Profile(
        schema=SCHEMA,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=_shareable_argv(checkpoint),
        device=describe_device(args.bandwidth_gb_s),
        software=software_versions(),
        model=_model_info(checkpoint),
        method=Method(**_method(args)),
        rows=[],
    )


def _method(args: argparse.Namespace) -> dict[str, Any]:
    rounds = rounds_for(args.repetitions, args.rounds)
    return {
        "decode_rate": "sum of (N - 1) / sum of (t_N - t_1) over a trial's passes",
        "excluded": ["load", "tokenisation", "sampling", "detokenisation", "trimming the cache"],
        "warmups": WARMUPS,
        "repetitions": args.repetitions,
        "processes_per_row": rounds,
        "trials_per_process": trials_per_process(args.repetitions, args.rounds),
        "min_window_s": args.min_window,
        "max_passes": MAX_PASSES,
        "cooldown_limit_s": args.cooldown,
        "power": args.power,
        "seed": args.seed,
        "clock": "monotonic_ns",
        "peak_memory": peak_metric(),
        "float32_products": "TF32 where the chip has it" if tf32_allowed() else "float32",
    }


def _model_info(checkpoint: Checkpoint) -> ModelInfo:
    return ModelInfo(
        name=checkpoint.source.name,
        source=checkpoint.source.origin,
        revision=checkpoint.source.revision,
        parameters=checkpoint.parameters,
        synthetic=checkpoint.source.synthetic,
    )


def _shareable_argv(checkpoint: Checkpoint) -> list[str]:
    """The command line without this machine's directories."""
    words = [Path(word).name if "/" in word else word for word in sys.argv]
    source = checkpoint.source
    return [source.origin if word == source.name else word for word in words]


def _plot(profile: Profile, path: Path) -> list[Path]:
    """The throughput of all rows; no file without a row."""
    if (drawn := throughput.draw(msgspec.to_builtins(profile))) is None:
        return []
    plot_path = path.with_suffix(".png")
    with atomic_write(plot_path) as partial:
        partial.write_bytes(to_png(drawn.figure))
    return [plot_path]


def _print(args: argparse.Namespace, profile: Profile, files: list[Path]) -> None:
    if args.output == "json":
        print(profile.to_json(), end="")
    else:
        data = msgspec.to_builtins(profile)
        print(markdown_table(data), end="\n\n")
        if args.suite == TABLE_11_SUITE:
            print(table11_beside(data), end="\n\n")
        for note in notes(data):
            print(f"- {note}")
        print()
    for file in files:
        print(f"saved {file}", file=sys.stderr)

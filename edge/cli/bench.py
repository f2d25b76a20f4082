"""Benchmark a model's artefacts on this machine."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edge.bench.compare import compare
from edge.bench.comparison_text import comparison_text, csv_rows
from edge.bench.cooldown import keep_awake, wait_for_cores
from edge.bench.duration import Pace, estimate, planned_s
from edge.bench.engines.engine import LLAMA_CPP, MLX
from edge.bench.environment import open_environment
from edge.bench.files import common_model, is_measured_as_is, open_files
from edge.bench.plan import Target, artefact_targets, plan_jobs, served_target
from edge.bench.processors import processors_of
from edge.bench.reference import reference_job
from edge.bench.row import Context
from edge.bench.runner import Run, fit_together, groups_of, split_trials, stopped_by_sigterm
from edge.bench.server import REMOTE
from edge.bench.until import LEAST_ROUNDS, Until
from edge.bench.worker import Job
from edge.bench.workload import check_lengths, plan_workloads, served_workloads, suite_workloads
from edge.bench.writer import ProfileWriter, method_of, new_profile
from edge.cli.checkpoint import Update, open_named, output_folder, progress_bars
from edge.cli.fleet import Join, run_each
from edge.cli.options import bench as options
from edge.cli.options.shared import TABLE_11_RECIPES, layout_of
from edge.convert.artefacts.recipes import find_recipe
from edge.convert.checkpoint import Checkpoint
from edge.convert.convert import convert
from edge.device.describe import Device, describe_device, usable_cores
from edge.distributed import rank
from edge.errors import EdgeError, printable
from edge.formats.files import atomic_write, check_writable
from edge.power.choose import NoMeter, choose_meter
from edge.power.meter import Meter
from edge.power.powermetrics import forget_probes
from edge.profile.baseline import check_baseline
from edge.profile.profile import ModelInfo, Profile, Workload, read
from edge.quality.corpus import check_trained
from edge.quality.evaluate import evaluate_in_child
from edge.report.plots.bars import throughput
from edge.report.published import table11_beside
from edge.report.table import csv_table, notes, profile_table, terminal_section
from edge.text import csv_text

Progress = Callable[[str, float], None]
WARMUPS = 1
ALL_ROWS = "all rows"
QUALITY_REFERENCE = "mlx-fp16"
NO_CHECKPOINT = (
    "quality was not measured and the logits were compared among themselves only: a file that is "
    "measured as it is has no checkpoint to compare with"
)
REMOTE_DEVICE = Device("remote server of unknown kind")
NO_QUALITY = "the quality of a served model is not measured: use edge eval on its files"
UNKNOWN_PROCESSOR = (
    "power was not measured: whether the server computes on the CPU or a GPU is not known; name "
    "the meter with --power rapl or --power nvml"
)


@dataclass(frozen=True)
class Work:
    """What a run measures: artefacts of a checkpoint, files as they are, or a server."""

    model: ModelInfo
    targets: list[Target]
    checkpoint: Checkpoint | None = None


def run(args: argparse.Namespace) -> int:
    """Converts what is missing, measures, and prints; or compares two profiles."""
    if args.compare is not None:
        return _compare(args)
    if args.each:
        return run_each(args, partial(measure, args))
    writer = measure(args)
    return _print(args, writer.profile, writer.path)


def measure(args: argparse.Namespace, join: Join = lambda _: []) -> ProfileWriter:
    """Converts what is missing and measures; `join` is called between the two."""
    work = find_work(args)
    new_meter = _new_meter(args, work.targets)
    has_power = new_meter().unavailable is None
    if args.min_window is None:
        args.min_window = options.ENERGY_WINDOW_S if has_power else options.SPEED_WINDOW_S
    if args.quality is not None and work.checkpoint is not None:
        check_trained(work.checkpoint)
    planned, compared = _with_comparison(args, plan(args, work.targets))
    check_writable(args.save)
    if args.server is None:
        args.threads = _free_threads(args, any(job.engine == LLAMA_CPP for job, _ in planned))
    rounds = split_trials(args.repetitions, args.rounds)[0]
    run = Run(
        jobs=[_job(args, job) for job, _ in planned],
        rounds=rounds if args.until is None else max(rounds, LEAST_ROUNDS),
        new_meter=new_meter,
        seed=args.seed,
        timeout_s=args.timeout,
        cooldown_s=args.cooldown,
        idle_s=args.idle if has_power else 0.0,
        has_power=has_power,
        warn=_warn,
    )
    _say(estimate(run))
    with stopped_by_sigterm():
        keep_awake()
        with progress_bars() as progress:
            made = _converted(args, work, progress)
        forget_probes()  # converting or downloading can take longer than sudo's ticket lasts
        targets = [made[target.recipe.name] for _, target in planned]
        beside = join(targets)
        if compared:
            run.groups = _turns(groups_of(run.jobs, args.baseline), targets)
        if args.each:
            compared |= {"fleet_number": rank() + 1}
        writer = _new_writer(args, work, run, targets, compared)
        writer.context = replace(writer.context, beside=beside)
        with _names_the_partial_profile(writer), progress_bars() as progress:
            _measure(args, writer, progress)
            if args.quality is not None and work.checkpoint is not None:
                _add_quality(args, work.checkpoint, writer, progress)
    return writer


def _job(args: argparse.Namespace, job: Job) -> Job:
    if args.is_split and (job.engine != MLX or job.arm or args.baseline or job.workload.batch > 1):
        raise EdgeError(
            "only MLX's rows are split over devices, one after another; name them, as in "
            "--rows mlx-int4, without --peers, --vs, --baseline and -npl."
        )
    return replace(job, threads=args.threads or job.threads, is_split=args.is_split)


def find_work(args: argparse.Namespace) -> Work:
    """Opens the checkpoint or the files of the command line, or asks the server for its model."""
    if args.server is not None:
        target = served_target(args.server, args.served, _warn)
        return Work(target.model, [target])
    is_checkpoint = len(args.models) == 1 and not (
        is_measured_as_is(args.models[0]) and not args.rows and args.suite != options.TABLE_11_SUITE
    )
    if is_checkpoint:
        (args.model,) = args.models
        checkpoint = open_named(args)
        out = output_folder(args.out, checkpoint.source.name)
        targets = artefact_targets(checkpoint, args.rows or TABLE_11_RECIPES, out, args.peers)
        return Work(targets[0].model, targets, checkpoint)
    options.check_files(args)
    targets = open_files(args.models)
    return Work(common_model(targets), targets)


def plan(args: argparse.Namespace, targets: Sequence[Target]) -> list[tuple[Job, Target]]:
    return plan_jobs(
        targets,
        partial(_workloads, args),
        seed=args.seed,
        repetitions=split_trials(args.repetitions, args.rounds)[1],
        warmups=WARMUPS,
        threads=args.threads or usable_cores(),
        kv_bits=args.kv_bits,
        min_window_s=args.min_window or 0.0,
        check=args.check,
    )


def _free_threads(args: argparse.Namespace, is_used: bool) -> int:
    """llama.cpp's threads: as asked for, or the cores that other programs leave free."""
    usable = usable_cores()
    wanted = min(args.threads or usable, usable)
    until = f"waiting up to {args.wait_idle:g} s until {wanted} of {usable} cores are free"
    free = wait_for_cores(wanted, args.wait_idle, lambda: _say(until))
    if free >= wanted:
        return args.threads or usable
    threads: int = args.threads or max(free, 1)
    ours = f"; llama.cpp gets -t {threads}" if is_used else ""
    _warn(
        f"other programs use {usable - free} of {usable} cores, so rates will be low and vary"
        f"{ours}: close them, or let --wait-idle wait for them"
    )
    return threads


def _with_comparison(
    args: argparse.Namespace, planned: list[tuple[Job, Target]]
) -> tuple[list[tuple[Job, Target]], dict[str, Any]]:
    """The jobs with those of another environment, and what the profile says of the comparison."""
    if args.baseline is not None:
        rows = ((target.recipe.name, job.engine, None) for job, target in planned)
        check_baseline(args.baseline, rows, (job.workload.batch for job, _ in planned))
        return planned, {"baseline": args.baseline, "until_percent": args.until}
    if args.vs is not None:
        other = open_environment(args.vs)
        about = {"vs_software": dict(other.software), "until_percent": args.until}
        return other.beside(planned), about
    return planned, {}


def _turns(groups: list[Hashable], targets: Sequence[Target]) -> list[Hashable] | None:
    """The groups that take turns; None, after a warning, without memory for one."""
    if fit_together(groups, [target.file_bytes for target in targets]):
        return groups
    _warn(
        "the rows that are compared do not fit into memory together, so their processes run one "
        "after the other, which leaves more of the machine's changes in the ratios: compare fewer "
        "--rows, or close programs"
    )
    return None


def _new_writer(
    args: argparse.Namespace,
    work: Work,
    run: Run,
    targets: Sequence[Target],
    compared: Mapping[str, Any],
) -> ProfileWriter:
    is_remote = work.model.source == REMOTE
    device = REMOTE_DEVICE if is_remote else describe_device(args.bandwidth_gb_s)
    method = method_of(run, args.repetitions, args.power, **compared)
    profile = new_profile(work.model, sys.argv, method, device)
    return ProfileWriter(profile, run, targets, args.save, _context(args, work, run, device))


def _measure(args: argparse.Namespace, writer: ProfileWriter, progress: Update) -> None:
    """Runs all rounds, with a bar for each row and one for the whole run."""
    run, pace, until = writer.run, Pace(writer.run), None
    if args.until is not None:
        until = Until(args.until / 100, args.until_minutes * 60, lambda: writer.profile)
        run.wants_more = until.wants_more
        _say(until.plan())
    progress(ALL_ROWS, 0.0, planned_s(run))

    def on_progress(row: int, done: float) -> None:
        progress(writer.label(row), done)
        progress(ALL_ROWS, *pace.after(row, done))

    run.run_rounds(writer.update, on_progress)
    writer.finish()
    progress(ALL_ROWS, 1.0)
    if until is not None:
        _say(until.result())


@contextmanager
def _names_the_partial_profile(writer: ProfileWriter) -> Iterator[None]:
    """Says where the rows are that were measured before Ctrl-C or SIGTERM."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if writer.is_saved:
            _say(f"stopped; what was measured so far is in {printable(str(writer.path))}")
        else:
            _say("stopped before anything was measured; no profile was saved")
        raise


def _workloads(args: argparse.Namespace, limit: int, name: str) -> list[Workload]:
    if args.suite is not None:
        return suite_workloads(args.suite, limit, name, _warn)
    counts = args.prompt or [options.PROMPT], args.generate or [options.GENERATE]
    if args.server is not None:
        return served_workloads(*counts, args.joint or [])
    others = args.depth or [options.DEPTH], args.joint or [], args.parallel or [1]
    planned = plan_workloads(*counts, *others)
    check_lengths(planned, limit, name)
    return planned


def _converted(args: argparse.Namespace, work: Work, progress: Progress) -> dict[str, Target]:
    """Targets by name; of a checkpoint with what is missing made, and the quality's reference."""
    targets = {target.recipe.name: target for target in work.targets}
    if work.checkpoint is None:
        return targets
    reference = [] if args.quality is None else [find_recipe(QUALITY_REFERENCE)]
    wanted = list(dict.fromkeys([*(target.recipe for target in work.targets), *reference]))
    out = output_folder(args.out, work.checkpoint.source.name)
    made = convert(work.checkpoint, wanted, out, progress, notice=_warn)
    return {a.recipe.name: targets[a.recipe.name].made(a) for a in made if a.recipe.name in targets}


def _context(args: argparse.Namespace, work: Work, run: Run, device: Device) -> Context:
    """Facts about the run, with the logits to compare where there is a checkpoint."""
    context = Context(run.rounds, device, work.model)
    if args.server is not None:
        return replace(context, no_quality=NO_QUALITY)
    if work.checkpoint is None:
        return replace(context, no_quality=NO_CHECKPOINT, no_check="")
    if not args.check:
        return context
    try:
        paths = list(dict.fromkeys(job.path for job in run.jobs))
        return replace(context, references=reference_job(work.checkpoint, paths))
    except EdgeError as error:
        _warn(f"logits are not checked: {error}")
        return context


def _add_quality(
    args: argparse.Namespace, checkpoint: Checkpoint, writer: ProfileWriter, progress: Progress
) -> None:
    """Measures the quality of each artefact; where that fails, warns and adds the reason."""
    out = output_folder(args.out, checkpoint.source.name)
    wanted = [*(target.recipe for target in writer.targets), find_recipe(QUALITY_REFERENCE)]
    paths = {recipe.name: recipe.path_in(out) for recipe in wanted}
    threads = args.threads or usable_cores()
    progress("quality", 0.0)
    try:
        found = evaluate_in_child(
            checkpoint, paths, QUALITY_REFERENCE, out / "eval", threads, args.quality
        )
    except EdgeError as error:
        _warn(str(error))
        writer.add_quality(None, f"quality: {error}")
    else:
        progress("quality", 1.0)
        writer.add_quality(found)


def _new_meter(args: argparse.Namespace, targets: Sequence[Target]) -> Callable[[], Meter]:
    """A maker of meters; with `auto` they cover the processors of the rows."""
    is_auto = args.power == "auto"
    if args.server is None:
        frameworks = (target.recipe.framework for target in targets)
        processors = processors_of(frameworks) if is_auto else ()
        return lambda: choose_meter(args.power, processors)
    if targets[0].model.source == REMOTE:
        return lambda: NoMeter("power was not measured: the server runs on another machine")
    if is_auto and sys.platform == "linux":  # where no meter covers both CPU and GPU
        return lambda: NoMeter(UNKNOWN_PROCESSOR)
    return lambda: choose_meter(args.power)


def _warn(sentence: str) -> None:
    _say(f"warning: {sentence}")


def _say(sentence: str) -> None:
    print(f"edge bench: {sentence}", file=sys.stderr)


def _print(args: argparse.Namespace, profile: Profile, path: Path) -> int:
    if args.output == "json":
        print(profile.to_json(), end="")
    elif args.output == "csv":
        print(csv_table([profile]), end="")
    else:
        _print_table(args, profile)
    print(f"saved {path}", file=sys.stderr)
    drawn = throughput(profile)
    if not isinstance(drawn, str):  # there is a row
        plot_path = path.with_suffix(".png")
        with atomic_write(plot_path) as partial:
            partial.write_bytes(drawn.png())
        print(f"saved {plot_path}", file=sys.stderr)
    print(f"next: edge report {shlex.quote(str(path))}", file=sys.stderr)
    return 1 if any(row.verdict == "INVALID" for row in profile.rows) else 0


def _print_table(args: argparse.Namespace, profile: Profile) -> None:
    layout, is_table_11 = layout_of(args), args.suite == options.TABLE_11_SUITE
    if layout is not None:
        print(terminal_section(profile, layout), end="\n\n")
        if is_table_11:
            print(table11_beside(profile).terminal(layout), end="\n\n")
        return
    print(profile_table(profile).markdown(), end="\n\n")
    if is_table_11:
        print(table11_beside(profile).markdown(), end="\n\n")
    for note in notes(profile):
        print(f"- {note}")
    print()


def _compare(args: argparse.Namespace) -> int:
    a, b = (read(path) for path in args.compare)
    found = compare(a, b, args.min_effect / 100)
    if args.output == "json":
        print(json.dumps(asdict(found), indent=1, allow_nan=False))
        return 0
    if args.output == "csv":
        print(csv_text(csv_rows(found)), end="")
        return 0
    print(comparison_text(found, [path.name for path in args.compare], layout_of(args)))
    return 0

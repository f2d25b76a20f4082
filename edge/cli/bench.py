"""Benchmark a model's artefacts on this machine."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from edge.bench.compare import Difference, compare
from edge.bench.cooldown import keep_awake
from edge.bench.files import common_model, is_measured_as_is, open_files
from edge.bench.plan import Target, artefact_targets, model_of, plan_jobs
from edge.bench.processors import processors_of
from edge.bench.reference import reference_job
from edge.bench.row import Context, Subject, subject_of
from edge.bench.runner import Run, split_trials, stopped_by_sigterm
from edge.bench.served import (
    NO_QUALITY,
    served_job,
    served_meter,
    served_profile,
    served_subject,
    served_workloads,
)
from edge.bench.server import choose_model, is_local, server_url
from edge.bench.worker import Job
from edge.bench.workload import check_lengths, plan_workloads, suite_workloads
from edge.bench.writer import ProfileWriter, method_of, new_profile
from edge.cli.checkpoint import open_named, output_folder, progress_bars
from edge.cli.options.bench import (
    DEPTH,
    ENERGY_WINDOW_S,
    GENERATE,
    OF_ARTEFACTS,
    PROMPT,
    SPEED_WINDOW_S,
    TABLE_11_SUITE,
    as_is_conflicts,
    parser,
)
from edge.cli.options.shared import TABLE_11_RECIPES
from edge.convert.artefacts.recipes import find_recipe
from edge.convert.checkpoint import Checkpoint
from edge.convert.convert import convert
from edge.device.describe import Device, usable_cores
from edge.errors import EdgeError
from edge.formats.files import atomic_write, check_writable
from edge.power.choose import choose_meter
from edge.power.meter import Meter
from edge.power.powermetrics import forget_probes
from edge.profile.profile import ModelInfo, Profile, Workload, read
from edge.quality.corpus import check_trained
from edge.quality.evaluate import evaluate_in_child
from edge.report.plots.bars import throughput
from edge.report.published import table11_beside
from edge.report.table import notes, profile_table
from edge.text import figure, markdown

Progress = Callable[[str, float], None]
WARMUPS = 1
WORKLOAD_FLAGS = {"prompt": "-p", "generate": "-n", "depth": "-d", "joint": "-pg"}
COMPARED = ("Row", "Quantity", "A", "B", "B / A", "95 % interval", "p", "Processes", "Conclusion")
TEXT_COLUMNS = ("Row", "Quantity", "Conclusion")
QUALITY_REFERENCE = "mlx-fp16"
NO_CHECKPOINT = (
    "quality was not measured and the logits were not compared: a file that is measured as it is "
    "has no checkpoint to compare with"
)


@dataclass(frozen=True)
class Work:
    """What a run measures: the artefacts of a checkpoint, or files as they are."""

    model: ModelInfo
    targets: Sequence[Target]
    checkpoint: Checkpoint | None
    files: Mapping[str, Subject]  # by the target's name; empty with a checkpoint


def run(args: argparse.Namespace) -> int:
    """Converts what is missing, measures, and prints; or compares two profiles."""
    if args.compare is not None:
        return _compare(args)
    if args.server is not None:
        return _run_server(args)
    if args.served is not None:
        raise EdgeError("--model names the model of a server; add --server, or give MODEL alone.")
    work = find_work(args)
    new_meter = _new_meter(args, work.targets)
    has_power = new_meter().unavailable is None
    if args.min_window is None:
        args.min_window = ENERGY_WINDOW_S if has_power else SPEED_WINDOW_S
    if args.quality is not None and work.checkpoint is not None:
        check_trained(work.checkpoint)
    planned = plan_jobs(work.targets, partial(_workloads, args), _settings(args))
    check_writable(args.save)
    with stopped_by_sigterm(), progress_bars() as progress:
        keep_awake()
        subjects = work.files
        if work.checkpoint is not None:
            subjects = _convert(args, work.checkpoint, work.targets, progress)
        jobs = [job for job, _ in planned]
        forget_probes()  # converting or downloading can take longer than sudo's ticket lasts
        run = _run_of(args, jobs, new_meter, has_power)
        method = method_of(run, args.repetitions, args.power)
        profile = new_profile(work.model, sys.argv, method, args.bandwidth_gb_s)
        context = _context(args, work, run, profile.device)
        of_rows = [subjects[target.recipe.name] for _, target in planned]
        writer = ProfileWriter(profile, run, of_rows, args.save, context)
        _measure(run, writer, progress)
        if args.quality is not None and work.checkpoint is not None:
            _add_quality(args, work.checkpoint, writer, progress)
    return _print(args, writer.profile, writer.path)


def _run_of(
    args: argparse.Namespace, jobs: list[Job], new_meter: Callable[[], Meter], has_power: bool
) -> Run:
    return Run(
        jobs=jobs,
        rounds=split_trials(args.repetitions, args.rounds)[0],
        new_meter=new_meter,
        seed=args.seed,
        timeout_s=args.timeout,
        cooldown_s=args.cooldown,
        idle_s=args.idle if has_power else 0.0,
        has_power=has_power,
        warn=_warn,
    )


def _measure(run: Run, writer: ProfileWriter, progress: Progress) -> None:
    run.run_rounds(writer.update, lambda row, done: progress(writer.label(row), done))
    writer.finish()


def _run_server(args: argparse.Namespace) -> int:
    """Measures a running server, after a short request that shows whether it answers."""
    new = parser()
    if given := [
        f for dest, f in OF_ARTEFACTS.items() if getattr(args, dest) != new.get_default(dest)
    ]:
        raise EdgeError(f"--server measures what the server runs; leave out {', '.join(given)}.")
    url, is_here = server_url(args.server), is_local(args.server)
    workloads = served_workloads(
        args.prompt or [PROMPT], args.generate or [GENERATE], args.joint or []
    )
    check_writable(args.save)
    name = choose_model(url, args.served, _warn)

    def new_meter() -> Meter:
        return served_meter(args.power, is_here)

    has_power = new_meter().unavailable is None
    least_s = args.min_window
    if least_s is None:
        least_s = ENERGY_WINDOW_S if has_power else SPEED_WINDOW_S
    jobs = [
        served_job(url, name, workload, args.repetitions, args.rounds, least_s)
        for workload in workloads
    ]
    with stopped_by_sigterm(), progress_bars() as progress:
        keep_awake()
        run = _run_of(args, jobs, new_meter, has_power)
        method = method_of(run, args.repetitions, args.power)
        profile = served_profile(name, sys.argv, method, is_here)
        context = Context(run.rounds, profile.device, no_quality=NO_QUALITY)
        writer = ProfileWriter(profile, run, [served_subject(name)] * len(jobs), args.save, context)
        _measure(run, writer, progress)
    return _print(args, writer.profile, writer.path)


def find_work(args: argparse.Namespace) -> Work:
    """Opens the files or the checkpoint of the command line."""
    is_checkpoint = len(args.models) == 1 and not (
        is_measured_as_is(args.models[0]) and not args.rows and args.suite != TABLE_11_SUITE
    )
    if is_checkpoint:
        (args.model,) = args.models
        checkpoint = open_named(args)
        out = output_folder(args.out, checkpoint.source.name)
        recipes = args.rows or TABLE_11_RECIPES
        targets = artefact_targets(checkpoint, recipes, out, args.peers)
        return Work(model_of(checkpoint), targets, checkpoint, {})
    if conflicts := as_is_conflicts(args):
        raise EdgeError(
            f"{', '.join(conflicts)} cannot be used with files that are measured as they are; "
            f"leave it out, or give one MODEL and --rows to convert it."
        )
    files = open_files(args.models)
    subjects = {file.subject.recipe.name: file.subject for file in files}
    return Work(common_model(files), [file.target for file in files], None, subjects)


def _settings(args: argparse.Namespace) -> Job:
    """What all jobs share."""
    return Job(
        engine="",
        path="",
        workload=Workload(),
        vocab_size=0,
        seed=args.seed,
        repetitions=split_trials(args.repetitions, args.rounds)[1],
        warmups=WARMUPS,
        threads=args.threads or usable_cores(),
        kv_bits=args.kv_bits,
        min_window_s=args.min_window or 0.0,
    )


def _workloads(args: argparse.Namespace, limit: int, name: str) -> list[Workload]:
    if args.suite is None:
        prompts, generates = args.prompt or [PROMPT], args.generate or [GENERATE]
        planned = plan_workloads(prompts, generates, args.depth or [DEPTH], args.joint or [])
        check_lengths(planned, limit, name)
        return planned
    if given := [flag for dest, flag in WORKLOAD_FLAGS.items() if getattr(args, dest) is not None]:
        flags = ", ".join(given)
        raise EdgeError(f"--suite {args.suite} sets the workloads itself; leave out {flags}.")
    return suite_workloads(args.suite, limit, name, _warn)


def _convert(
    args: argparse.Namespace, checkpoint: Checkpoint, targets: Sequence[Target], progress: Progress
) -> dict[str, Subject]:
    """Makes what is missing: the rows' artefacts, and the reference of their quality."""
    reference = [] if args.quality is None else [find_recipe(QUALITY_REFERENCE)]
    wanted = list(dict.fromkeys([*(target.recipe for target in targets), *reference]))
    out = output_folder(args.out, checkpoint.source.name)
    made = convert(checkpoint, wanted, out, progress)
    return {each.recipe.name: subject_of(each, checkpoint.parameters) for each in made}


def _context(args: argparse.Namespace, work: Work, run: Run, device: Device) -> Context:
    """Facts about the run, with the logits to compare where there is a checkpoint."""
    if work.checkpoint is None:
        return Context(run.rounds, device, no_quality=NO_CHECKPOINT, no_check="")
    context = Context(run.rounds, device)
    if not args.check:
        return context
    try:
        paths = list(dict.fromkeys(job.path for job in run.jobs))
        return replace(context, references=reference_job(work.checkpoint, paths))
    except EdgeError as error:
        _warn(f"logits are not checked: {error}")
        return context


def _add_quality(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    writer: ProfileWriter,
    progress: Progress,
) -> None:
    """Measures the quality of each artefact; where that fails, warns and adds the reason."""
    out = output_folder(args.out, checkpoint.source.name)
    wanted = [*(subject.recipe for subject in writer.subjects), find_recipe(QUALITY_REFERENCE)]
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
    frameworks = (target.recipe.framework for target in targets)
    processors = processors_of(frameworks) if is_auto else ()
    return lambda: choose_meter(args.power, processors)


def _warn(sentence: str) -> None:
    print(f"edge bench: warning: {sentence}", file=sys.stderr)


def _print(args: argparse.Namespace, profile: Profile, path: Path) -> int:
    """Prints the profile, saves its plot; the exit code."""
    if args.output == "json":
        print(profile.to_json(), end="")
    else:
        print(profile_table(profile).markdown(), end="\n\n")
        if args.suite == TABLE_11_SUITE:
            print(table11_beside(profile).markdown(), end="\n\n")
        for note in notes(profile):
            print(f"- {note}")
        print()
    print(f"saved {path}", file=sys.stderr)
    drawn = throughput(profile)
    if not isinstance(drawn, str):  # there is a row
        plot_path = path.with_suffix(".png")
        with atomic_write(plot_path) as partial:
            partial.write_bytes(drawn.png())
        print(f"saved {plot_path}", file=sys.stderr)
    return 1 if any(row.verdict == "INVALID" for row in profile.rows) else 0


def _compare(args: argparse.Namespace) -> int:
    a, b = (read(path) for path in args.compare)
    found = compare(a, b, args.min_effect / 100)
    if args.output == "json":
        print(json.dumps(asdict(found), indent=1, allow_nan=False))
        return 0
    lines = [
        [f"{row.artefact} on {row.engine}, {row.workload}", *_compared_cells(difference)]
        for row in found.rows
        for difference in row.differences
    ]
    print(markdown(COMPARED, lines, TEXT_COLUMNS), end="\n\n")
    for side, path, device in zip("AB", args.compare, found.devices, strict=True):
        print(f"- {side}: {path.name}, {device}")
    print(
        f"- a difference has p < {1 - found.confidence:.2f} (Welch's test on the logarithms of the "
        f"processes' means) and {found.min_effect:.1%} or more"
    )
    for remark in found.remarks:
        print(f"- {remark}")
    return 0


def _compared_cells(found: Difference) -> list[str]:
    low_high, p, conclusion = found.interval, found.p, str(found.conclusion)
    if found.is_better is not None:
        size = f"{abs(found.ratio - 1):.1%}"
        conclusion = f"{size} {conclusion}: {'better' if found.is_better else 'worse'}"
    return [
        f"{found.quantity} ({found.unit})",
        figure(found.a, 4),
        figure(found.b, 4),
        f"{found.ratio:.3f}",
        f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else "—",
        "—" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001",
        "{} and {}".format(*found.processes),
        conclusion,
    ]

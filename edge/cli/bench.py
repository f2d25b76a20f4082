"""Benchmark a model's artefacts on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli.arguments import (
    add_artefacts,
    add_checkpoint,
    count,
    count_or_zero,
    open_named,
    output_folder,
)
from edge.cli.progress import progress_bars
from edge.errors import EdgeError
from edge.power.choose import SOURCES

if TYPE_CHECKING:
    from edge.bench.job import Job
    from edge.bench.profile import ModelInfo, Profile, Row
    from edge.bench.row import Subject
    from edge.checkpoints.artefacts.recipes import Recipe
    from edge.checkpoints.checkpoint import Checkpoint

Progress = Callable[[str, float], None]
WARMUPS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; short flags are llama-bench's."""
    add_checkpoint(parser, default="demo")
    add_artefacts(parser, "--rows", "what to measure")
    workload = parser.add_argument_group("workload")
    workload.add_argument(
        "-p",
        "--prompt",
        metavar="N",
        type=count_or_zero,
        default=512,
        help="prompt tokens (default: 512)",
    )
    workload.add_argument(
        "-n",
        "--generate",
        metavar="N",
        type=count,
        default=128,
        help="generated tokens (default: 128)",
    )
    workload.add_argument(
        "-d",
        "--depth",
        metavar="N",
        type=count_or_zero,
        default=0,
        help="tokens of context before (default: 0)",
    )
    workload.add_argument(
        "-r",
        "--repetitions",
        metavar="N",
        type=count,
        default=5,
        help="trials per row (default: 5)",
    )
    workload.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of the token ids (default: 0)"
    )
    parser.add_argument(
        "--peers", action="store_true", help="also run MLX artefacts on mlx-lm's own network"
    )
    parser.add_argument(
        "--no-fuse",
        dest="fuse",
        action="store_false",
        help="our network with q, k, v and gate, up as separate matrices, to compare",
    )
    parser.add_argument(
        "--no-pad",
        dest="pad",
        action="store_const",
        const=False,
        help="our network without padding heads for the fused attention, to compare",
    )
    parser.add_argument(
        "-t",
        "--threads",
        metavar="N",
        type=count,
        help="CPU threads of llama.cpp (default: usable cores)",
    )
    parser.add_argument(
        "--power", choices=SOURCES, default="auto", help="where watts come from (default: auto)"
    )
    parser.add_argument(
        "--timeout", type=count, default=3600, metavar="S", help="seconds per row (default: 3600)"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder of the artefacts (default: models/NAME)"
    )
    parser.add_argument(
        "--save",
        type=Path,
        default=Path("profiles/local"),
        metavar="DIR",
        help="folder for the profile and its plot (default: profiles/local)",
    )
    parser.add_argument(
        "-o", "--output", choices=["md", "json"], default="md", help="what to print (default: md)"
    )


def run(args: argparse.Namespace) -> int:
    """Convert what is missing, measure row by row, save, plot, print."""
    from edge.atomic import check_writable
    from edge.bench.profile import write_profile

    checkpoint = open_named(args)
    jobs = _plan(args, checkpoint)
    check_writable(args.save)
    profile = _new_profile(args, checkpoint)
    path = _profile_path(args.save, profile)
    with progress_bars() as progress:
        subjects = _convert(args, checkpoint, progress)
        for job, recipe in jobs:
            profile.rows.append(_measure(args, job, subjects[recipe.name], progress))
            write_profile(profile, path)  # after each row: a later failure loses nothing
    plot_path = _plot(profile, path)
    _print(args.output, profile, [path, plot_path])
    return 1 if any(row.verdict == "INVALID" for row in profile.rows) else 0


def _plan(args: argparse.Namespace, checkpoint: Checkpoint) -> list[tuple[Job, Recipe]]:
    """One job per row, peers right after ours."""
    from edge.bench.job import Job
    from edge.bench.workload import Workload
    from edge.device.describe import usable_cores

    workload = Workload(args.prompt, args.generate, args.depth)
    limit = checkpoint.config.max_position_embeddings
    if workload.context_tokens > limit:
        raise EdgeError(
            f"{workload} needs {workload.context_tokens} positions, {checkpoint.source.name} "
            f"was trained for {limit}; use a smaller -p, -n or -d."
        )
    if args.prompt == 0 and args.generate < 2:
        raise EdgeError("-p 0 -n 1 leaves nothing to measure; use a prompt, or -n 2 or more.")
    threads = args.threads or usable_cores()
    return [
        (
            Job(
                engine=engine,
                path=str(recipe.path_in(output_folder(args.out, checkpoint.source.name))),
                workload=workload,
                vocab_size=checkpoint.config.vocab_size,
                seed=args.seed,
                repetitions=args.repetitions,
                warmups=WARMUPS,
                threads=threads,
                fuse=args.fuse,
                pad=args.pad,
            ),
            recipe,
        )
        for recipe in dict.fromkeys(args.rows)
        for engine in _engines(recipe, args.peers)
    ]


def _engines(recipe: Recipe, peers: bool) -> tuple[str, ...]:
    if not recipe.is_mlx:
        return ("llama.cpp",)
    return ("mlx", "mlx-lm") if peers else ("mlx",)


def _convert(
    args: argparse.Namespace, checkpoint: Checkpoint, progress: Progress
) -> dict[str, Subject]:
    from edge.bench.row import Subject
    from edge.checkpoints.artefacts.sizes import bits_per_weight, file_bytes
    from edge.checkpoints.convert import convert

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
        for made in convert(checkpoint, args.rows, out, progress)
    }


def _measure(args: argparse.Namespace, job: Job, subject: Subject, progress: Progress) -> Row:
    """One row in a fresh process, the meter running around it."""
    from edge.bench.row import build_row
    from edge.bench.runner import run_job
    from edge.power.choose import choose_meter

    label = f"{subject.artefact} on {job.engine}"
    total = job.warmups + job.repetitions
    meter = choose_meter(args.power)
    progress(label, 0.0)
    meter.start()
    try:
        outcome = run_job(job, args.timeout, lambda t: progress(label, (t.repetition + 1) / total))
    finally:  # on Ctrl-C too: a meter may be a process of its own
        samples = meter.stop()
    return build_row(subject, outcome, meter, samples)


def _new_profile(args: argparse.Namespace, checkpoint: Checkpoint) -> Profile:
    from datetime import UTC, datetime

    from edge.bench.profile import Profile
    from edge.bench.software import software_versions
    from edge.device.describe import describe_device

    return Profile(
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=_shareable_argv(checkpoint),
        device=describe_device(),
        software=software_versions(),
        model=_model_info(checkpoint),
        method={
            "decode_rate": "(N - 1) / (t_N - t_1), one stamp per token",
            "excluded": ["load", "tokenisation", "sampling", "detokenisation"],
            "warmups": WARMUPS,
            "repetitions": args.repetitions,
            "processes_per_row": 1,
            "seed": args.seed,
            "clock": "monotonic_ns",
        },
    )


def _model_info(checkpoint: Checkpoint) -> ModelInfo:
    from edge.bench.profile import ModelInfo

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


def _profile_path(folder: Path, profile: Profile) -> Path:
    stamp = profile.created_utc.replace("+00:00", "Z").replace(":", "").replace("-", "")
    return folder / f"{stamp}-{profile.model.name}.json"


def _plot(profile: Profile, path: Path) -> Path:
    from edge.report.plot import save_png, throughput_plot

    plot_path = path.with_suffix(".png")
    save_png(throughput_plot(profile.to_dict()), plot_path)
    return plot_path


def _print(output: str, profile: Profile, files: list[Path]) -> None:
    from edge.report.table import markdown_table, notes

    if output == "json":
        print(profile.to_json(), end="")
    else:
        data = profile.to_dict()
        print(markdown_table(data), end="\n\n")
        for note in notes(data):
            print(f"- {note}")
        print()
    for file in files:
        print(f"saved {file}", file=sys.stderr)

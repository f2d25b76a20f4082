"""Measure what artefacts lose: perplexity, divergence from a reference, or filled middles."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.cli.arguments import (
    add_artefacts,
    add_checkpoint,
    artefact,
    count,
    count_or_zero,
    open_named,
    output_folder,
)
from edge.cli.eval_fim import FIM_DEFAULTS, add_fim_arguments
from edge.cli.eval_rows import Progress, check_unused, converted
from edge.cli.progress import progress_bars
from edge.errors import EdgeError
from edge.quality.sizes import TOKENS, WINDOW_TOKENS, WINDOWS
from edge.stdout import check_stdout, write_stdout

if TYPE_CHECKING:
    from edge.convert.artefacts.recipes import Recipe
    from edge.convert.checkpoint import Checkpoint
    from edge.convert.convert import Artefact
    from edge.quality.evaluate import Evaluated
    from edge.quality.windows import Windows
    from edge.tokenizer.tokenizer import Tokenizer

REFERENCE = "mlx-fp16"
NO_REFERENCE = "none"
FOLDER = "eval"  # of the scores, beside the artefacts
WINDOW_DEFAULTS = {"tokens": None, "window": None, "worst": 0, "again": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_checkpoint(parser, default="demo")
    add_artefacts(parser, "--rows", "what to measure")
    parser.add_argument(
        "--reference",
        metavar="ARTEFACT",
        type=_reference,
        default=artefact(REFERENCE),
        help=f"what to compare with, or {NO_REFERENCE} (default: {REFERENCE})",
    )
    parser.add_argument(
        "--corpus",
        metavar="FILE|DIR",
        type=Path,
        help="text or source code to measure on (default: a sample of code that comes with edge)",
    )
    _add_windows(parser.add_argument_group("perplexity and divergence"))
    add_fim_arguments(parser)
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of the middles (default: 0)"
    )
    parser.add_argument(
        "-t",
        "--threads",
        metavar="N",
        type=count,
        help="CPU threads of llama.cpp (default: usable cores)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder of the artefacts and of what was measured (default: models/NAME)",
    )
    parser.add_argument(
        "-o", "--output", choices=["md", "json"], default="md", help="what to print (default: md)"
    )


def _add_windows(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tokens",
        metavar="N",
        type=count_or_zero,
        help="measure so many at most, spread over the corpus; 0: all of it (default: "
        f"{TOKENS}, or {WINDOWS} windows if that is more)",
    )
    group.add_argument(
        "--window",
        metavar="W",
        type=count,
        help="tokens that are read at once, nothing before them (default: "
        f"{WINDOW_TOKENS}, or the model's context if that is less)",
    )
    group.add_argument(
        "--worst",
        metavar="K",
        type=count_or_zero,
        default=0,
        help="also print the K positions of each artefact that are furthest from the reference",
    )
    group.add_argument(
        "--again", action="store_true", help="measure again what was measured before"
    )


def run(args: argparse.Namespace) -> int:
    """Convert what is missing, score what was not scored before, print."""
    if args.fim is not None or args.humaneval is not None:
        from edge.cli.eval_fim import run_fim

        check_unused(args, WINDOW_DEFAULTS, "is of perplexity and not of middles; leave it out")
        return run_fim(args)
    from edge.quality.prepare import check_trained, tokenizer_of, windows_of

    check_stdout()
    check_unused(args, FIM_DEFAULTS, "is of middles; name --fim or --humaneval too")
    if args.worst and args.reference is None:
        raise EdgeError("--worst shows what is furthest from a reference; leave out --reference.")
    checkpoint = open_named(args)
    check_trained(checkpoint)
    tokenizer = tokenizer_of(checkpoint)
    corpus = args.corpus and args.corpus.expanduser()
    windows = windows_of(checkpoint, tokenizer, corpus, args.window, args.tokens)
    with progress_bars() as progress:
        made = converted(args, checkpoint, progress)
        found = _evaluate(args, checkpoint, windows, made, progress)
    document = _document(args, checkpoint, windows, made, found)
    shown = _worst(args, windows, tokenizer, found)
    _print(args, document, shown)
    return 0


def _reference(name: str) -> Recipe | None:
    """An artefact's name or none, for argparse."""
    return None if name == NO_REFERENCE else artefact(name)


def _evaluate(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    windows: Windows,
    made: Sequence[Artefact],
    progress: Progress,
) -> Evaluated:
    from edge.device.describe import usable_cores
    from edge.quality.evaluate import evaluate
    from edge.quality.subject import Subject

    return evaluate(
        [Subject(a.recipe.name, a.path) for a in made],
        None if args.reference is None else args.reference.name,
        windows,
        checkpoint.config,
        threads=args.threads or usable_cores(),
        folder=output_folder(args.out, checkpoint.source.name) / FOLDER,
        again=args.again,
        progress=lambda name, done: progress(f"{name}, windows", done),
    )


def _document(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    windows: Windows,
    made: Sequence[Artefact],
    found: Evaluated,
) -> dict[str, Any]:
    from edge.quality.rows import build_row, corpus_record, notes

    source = checkpoint.source
    reference = None if args.reference is None else args.reference.name
    rows = [
        build_row(_facts(a, checkpoint), found.quality[a.recipe.name], a.recipe.name == reference)
        for a in made
    ]
    document: dict[str, Any] = {
        "model": {"name": source.name, "source": source.origin, "revision": source.revision},
        "corpus": corpus_record(windows),
        "window": windows.tokens,
        "reference": reference,
        "rows": rows,
    }
    lost = [f"{a.recipe.name}: {note}" for a in made for note in a.notes]
    return {**document, "notes": [*notes(document), *found.notes, *lost]}


def _facts(made: Artefact, checkpoint: Checkpoint) -> Any:
    from edge.convert.artefacts.sizes import bits_per_weight, file_bytes
    from edge.quality.rows import Facts

    return Facts(
        artefact=made.recipe.name,
        framework=made.recipe.framework,
        precision=made.recipe.precision,
        file_bytes=file_bytes(made.path),
        bits_per_weight=bits_per_weight(made.path, checkpoint.parameters),
    )


def _worst(
    args: argparse.Namespace, windows: Windows, tokenizer: Tokenizer, found: Evaluated
) -> dict[str, list[Any]]:
    """By artefact; nothing where it was not asked for."""
    from edge.quality.worst import worst

    if not args.worst or args.reference is None:
        return {}
    reference = args.reference.name
    return {
        name: worst(windows, scores, found.scores[reference], tokenizer, args.worst)
        for name, scores in found.scores.items()
        if name != reference
    }


def _print(args: argparse.Namespace, document: dict[str, Any], shown: dict[str, list[Any]]) -> None:
    from edge.quality.rows import markdown
    from edge.quality.worst import worst_text
    from edge.report.markdown import escape_markdown

    if args.output == "json":
        for row in document["rows"]:
            if row["artefact"] in shown:
                row["worst"] = [asdict(place) for place in shown[row["artefact"]]]
        write_stdout(json.dumps(document, indent=2, allow_nan=False) + "\n")
        return
    parts = [escape_markdown(worst_text(name, places)) + "\n" for name, places in shown.items()]
    write_stdout("\n".join([markdown(document), *parts]))

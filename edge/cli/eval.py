"""Measure what artefacts lose: perplexity, divergence from a reference, or filled middles."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from edge.cli.checkpoint import open_named, output_folder
from edge.cli.eval_fim import run_fim
from edge.cli.eval_rows import Progress, converted
from edge.cli.options.eval import check
from edge.cli.progress import progress_bars
from edge.convert.artefacts.sizes import bits_per_weight, file_bytes
from edge.convert.checkpoint import Checkpoint
from edge.convert.convert import Artefact
from edge.device.describe import usable_cores
from edge.quality.evaluate import Evaluated, evaluate
from edge.quality.prepare import check_trained, tokenizer_of, windows_of
from edge.quality.rows import Facts, build_row, corpus_record, markdown, notes
from edge.quality.subject import Subject
from edge.quality.windows import Windows
from edge.quality.worst import worst, worst_text
from edge.report.markdown import escape_markdown
from edge.stdout import check_stdout, write_stdout
from edge.tokenizer.tokenizer import Tokenizer

FOLDER = "eval"  # of the scores, beside the artefacts


def run(args: argparse.Namespace) -> int:
    """Convert what is missing, score what was not scored before, print."""
    check_stdout()
    check(args)
    if args.fim is not None or args.humaneval is not None:
        return run_fim(args)
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


def _evaluate(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    windows: Windows,
    made: Sequence[Artefact],
    progress: Progress,
) -> Evaluated:
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
    if not args.worst or args.reference is None:
        return {}
    reference = args.reference.name
    return {
        name: worst(windows, scores, found.scores[reference], tokenizer, args.worst)
        for name, scores in found.scores.items()
        if name != reference
    }


def _print(args: argparse.Namespace, document: dict[str, Any], shown: dict[str, list[Any]]) -> None:
    if args.output == "json":
        for row in document["rows"]:
            if row["artefact"] in shown:
                row["worst"] = [asdict(place) for place in shown[row["artefact"]]]
        write_stdout(json.dumps(document, indent=2, allow_nan=False) + "\n")
        return
    parts = [escape_markdown(worst_text(name, places)) + "\n" for name, places in shown.items()]
    write_stdout("\n".join([markdown(document), *parts]))

"""Measure what artefacts lose: perplexity, divergence from a reference, or filled middles."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from edge.cli.checkpoint import open_named, output_folder
from edge.cli.options.eval import SAMPLES, check
from edge.cli.progress import progress_bars
from edge.convert.checkpoint import Checkpoint
from edge.convert.convert import Artefact, convert
from edge.device.describe import usable_cores
from edge.generate.fim import FimTokens
from edge.quality.corpus import check_trained, iter_texts, tokenizer_of, windows_of
from edge.quality.evaluate import evaluate
from edge.quality.fim.fill import Settings, fill_all, rules_version
from edge.quality.fim.holes import KINDS, Hole, draw_holes, read_humaneval
from edge.quality.fim.rows import build_rows, samples, samples_text
from edge.quality.fim.rows import markdown as fim_markdown
from edge.quality.records import Subject
from edge.quality.table import add_worst, build_document, markdown, model_record
from edge.stdout import check_stdout, write_stdout
from edge.tokenizer.tokenizer import Tokenizer

FOLDER = "eval"  # of what was computed, beside the artefacts
Progress = Callable[[str, float], None]


def run(args: argparse.Namespace) -> int:
    """Convert what is missing, measure what was not measured before, print."""
    check_stdout()
    check(args)
    checkpoint = open_named(args)
    check_trained(checkpoint)
    tokenizer = tokenizer_of(checkpoint)
    middles = args.fim is not None or args.humaneval is not None
    evaluated = _middles if middles else _perplexity
    document, text = evaluated(args, checkpoint, tokenizer)
    if args.output == "json":
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    write_stdout(text)
    return 0


def _perplexity(
    args: argparse.Namespace, checkpoint: Checkpoint, tokenizer: Tokenizer
) -> tuple[dict[str, Any], str]:
    windows = windows_of(checkpoint, tokenizer, _path(args.corpus), args.window, args.tokens)
    reference = _reference_name(args)
    with progress_bars() as progress:
        artefacts = _converted(args, checkpoint, progress)
        found = evaluate(
            [Subject(a.recipe.name, a.path) for a in artefacts],
            reference,
            windows,
            checkpoint.config,
            threads=args.threads or usable_cores(),
            folder=output_folder(args.out, checkpoint.source.name) / FOLDER,
            again=args.again,
            progress=lambda name, done: progress(f"{name}, windows", done),
        )
    document = build_document(checkpoint, artefacts, reference, windows, found)
    if args.worst:
        add_worst(document, windows, found, tokenizer, args.worst)
    return document, markdown(document)


def _middles(
    args: argparse.Namespace, checkpoint: Checkpoint, tokenizer: Tokenizer
) -> tuple[dict[str, Any], str]:
    FimTokens.find(tokenizer.backend_tokenizer)  # refuses a model without them
    limit = checkpoint.config.max_position_embeddings
    settings = Settings.of(args.order, args.max_tokens, limit)
    holes, middles = _holes(args), {}
    with progress_bars() as progress:
        for artefact in _converted(args, checkpoint, progress):
            name = artefact.recipe.name
            middles[name] = fill_all(
                Subject(name, artefact.path),
                holes,
                settings,
                tokenizer,
                output_folder(args.out, checkpoint.source.name) / FOLDER / "middles",
                args.threads or usable_cores(),
                partial(progress, name),
                warn=lambda text: print(f"edge {args.command}: warning: {text}", file=sys.stderr),
            )
    rows = build_rows(holes, middles, _reference_name(args))
    shown = samples(holes, middles, args.show)
    document = {
        "model": model_record(checkpoint),
        "method": _method(args, settings),
        "reference": _reference_name(args),
        "rows": rows,
        **({"samples": shown} if args.show else {}),
    }
    return document, (samples_text(shown) + "\n" if shown else "") + fim_markdown(rows)


def _holes(args: argparse.Namespace) -> list[Hole]:
    """The holes of one kind after those of another."""
    if args.humaneval is not None:
        return read_humaneval(args.humaneval.expanduser(), args.samples)
    texts = list(iter_texts(_path(Path(args.fim) if args.fim else args.corpus)))
    most = args.samples or SAMPLES
    return [hole for kind in KINDS for hole in draw_holes(texts, kind, most, args.seed)]


def _method(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Settings that the rows' numbers depend on."""
    humaneval = args.humaneval is not None
    return {
        "benchmark": "HumanEval infilling" if humaneval else "held-out middles",
        "seed": None if humaneval else args.seed,
        **asdict(settings),
        "sampling": "greedy",
        "stop_rules": rules_version(),
    }


def _converted(
    args: argparse.Namespace, checkpoint: Checkpoint, progress: Progress
) -> list[Artefact]:
    """The rows in the order asked for; the reference first where it is not among them."""
    recipes = list(dict.fromkeys(args.rows))
    if args.reference is not None and args.reference not in recipes:
        recipes.insert(0, args.reference)
    return convert(checkpoint, recipes, output_folder(args.out, checkpoint.source.name), progress)


def _reference_name(args: argparse.Namespace) -> str | None:
    return None if args.reference is None else args.reference.name


def _path(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser()

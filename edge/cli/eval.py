"""Measure perplexity and KL divergence of artefacts, or infilling."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from edge.cli.checkpoint import open_named, output_folder, progress_bars
from edge.cli.options.eval import SAMPLES, check
from edge.convert.checkpoint import Checkpoint
from edge.convert.convert import Artefact, convert
from edge.device.describe import usable_cores
from edge.quality.corpus import check_trained, iter_texts, windows_of
from edge.quality.evaluate import evaluate
from edge.quality.fim.fill import Settings, fill_all, rules_version, settings_for
from edge.quality.fim.holes import KINDS, Hole, draw_holes, read_humaneval
from edge.quality.fim.score import build_rows, samples, samples_text
from edge.quality.fim.score import markdown as fim_markdown
from edge.quality.records import Subject
from edge.quality.table import build_document, markdown, model_record
from edge.stdout import check_stdout, write_stdout
from edge.tokenizer.fim_tokens import FimTokens
from edge.tokenizer.tokenizer import Tokenizer

Progress = Callable[[str, float], None]


def run(args: argparse.Namespace) -> int:
    """Convert missing artefacts, measure what is not stored, print."""
    check_stdout()
    check(args)
    checkpoint = open_named(args)
    check_trained(checkpoint)
    evaluated = _perplexity if args.fim is None and args.humaneval is None else _infilling
    document, text = evaluated(args, checkpoint, checkpoint.tokenizer)
    if args.output == "json":
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    write_stdout(text)
    return 0


def _perplexity(
    args: argparse.Namespace, checkpoint: Checkpoint, tokenizer: Tokenizer
) -> tuple[dict[str, Any], str]:
    windows = windows_of(checkpoint, tokenizer, args.corpus, args.window, args.tokens)
    reference = _reference_name(args)
    with progress_bars() as progress:
        artefacts = _converted(args, checkpoint, progress)
        found = evaluate(
            [Subject(a.recipe.name, a.path) for a in artefacts],
            reference,
            windows,
            checkpoint.config,
            _results_folder(args, checkpoint),
            args.threads or usable_cores(),
            again=args.again,
            progress=lambda name, done: progress(f"{name}, windows", done),
        )
    document = build_document(
        checkpoint, artefacts, reference, windows, found, tokenizer, args.worst
    )
    return document, markdown(document)


def _infilling(
    args: argparse.Namespace, checkpoint: Checkpoint, tokenizer: Tokenizer
) -> tuple[dict[str, Any], str]:
    FimTokens.find(tokenizer.backend_tokenizer).check(args.order)  # before it converts
    limit = checkpoint.config.max_position_embeddings
    settings = settings_for(limit, args.order, args.max_tokens)
    holes, middles = _holes(args), {}
    with progress_bars() as progress:
        for artefact in _converted(args, checkpoint, progress):
            name = artefact.recipe.name
            middles[name] = fill_all(
                Subject(name, artefact.path),
                holes,
                settings,
                tokenizer,
                _results_folder(args, checkpoint) / "middles",
                args.threads or usable_cores(),
                partial(progress, name),
                warn=lambda text: print(f"edge eval: warning: {text}", file=sys.stderr),
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
    if args.humaneval is not None:
        return read_humaneval(args.humaneval, args.samples)
    texts = list(iter_texts(Path(args.fim).expanduser() if args.fim else args.corpus))
    most = args.samples or SAMPLES
    return [hole for kind in KINDS for hole in draw_holes(texts, kind, most, args.seed)]


def _method(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
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
    """The artefacts in the order given, after the reference if it is not one of them."""
    recipes = list(dict.fromkeys(args.rows))
    if args.reference is not None and args.reference not in recipes:
        recipes.insert(0, args.reference)
    return convert(checkpoint, recipes, output_folder(args.out, checkpoint.source.name), progress)


def _results_folder(args: argparse.Namespace, checkpoint: Checkpoint) -> Path:
    return output_folder(args.out, checkpoint.source.name) / "eval"


def _reference_name(args: argparse.Namespace) -> str | None:
    return None if args.reference is None else args.reference.name

"""Measure perplexity and KL divergence of artefacts, or infilling."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from edge.cli.checkpoint import open_named, output_folder, progress_bars
from edge.cli.model_path import gguf_file, is_gguf_file
from edge.cli.options.eval import SAMPLES, check_files, reference_of
from edge.cli.options.shared import TABLE_11_RECIPES, layout_of
from edge.convert.checkpoint import Checkpoint
from edge.convert.convert import Artefact, convert
from edge.convert.sources.find import find_source
from edge.device.describe import usable_cores
from edge.distributed import only_rank_0_prints, rank, ranks
from edge.errors import EdgeError
from edge.model.config import ModelConfig
from edge.quality.corpus import Windows, check_trained, iter_texts, windows_of
from edge.quality.evaluate import Evaluated, evaluate
from edge.quality.files import open_files
from edge.quality.fim.fill import Settings, fill_all, rules_version, settings_for
from edge.quality.fim.holes import KINDS, Hole, draw_holes, read_humaneval
from edge.quality.fim.score import build_rows, samples, samples_text
from edge.quality.fim.score import text as fim_text
from edge.quality.records import Subject
from edge.quality.score import GgufShape
from edge.quality.table import build_document, model_record, text
from edge.stdout import write_stdout
from edge.text import csv_text
from edge.tokenizer.fim_tokens import FimTokens

Progress = Callable[[str, float], None]
Result = tuple[dict[str, Any], str]  # the JSON document, and the text for a terminal


def run(args: argparse.Namespace) -> int:
    """Convert missing artefacts, measure what is not stored, print."""
    with only_rank_0_prints():
        code = _run(args)
    return code if rank() == 0 else 0


def _run(args: argparse.Namespace) -> int:
    is_infilling = args.fim is not None or args.humaneval is not None
    if is_infilling and ranks() > 1:
        raise EdgeError("infilling is not split over machines; leave out mlx.launch.")
    files = [gguf_file(model) for model in args.model if is_gguf_file(model)]
    if args.rows is None and not is_infilling and files:
        check_files(args)
        _check_count(args.model, most=len(files))
        document, shown = _files_alone(args, files)
    else:
        if is_infilling and files:
            note = "infilling is measured on artefacts that are made of the GGUF file"
            _warn(f"{note}, not on the file as it is.")
        _check_count(args.model, most=1)
        (args.model,) = args.model
        checkpoint = open_named(args)
        check_trained(checkpoint)
        document, shown = (_infilling if is_infilling else _perplexity)(args, checkpoint)
    if args.output == "json":
        shown = json.dumps(document, indent=2, allow_nan=False) + "\n"
    elif args.output == "csv":
        shown = csv_text({**row, "worst": None} for row in document["rows"])
    write_stdout(shown)
    has_failed = any(row.get("perplexity", 1) is None for row in document["rows"])
    return 1 if has_failed else 0


def _check_count(models: Sequence[str], most: int) -> None:
    if len(models) > most:
        raise EdgeError(
            f"{len(models)} models are named; several are measured together only if all are GGUF "
            f"files, without --rows."
        )


def _files_alone(args: argparse.Namespace, paths: list[Path]) -> Result:
    source = find_source(str(paths[0]), args.revision, args.layers)
    made, sizes, windows, shape = open_files(paths, args.corpus, args.window, args.tokens)
    with progress_bars() as progress:
        found = _evaluated(args, source.name, made, None, windows, shape, progress)
    document = build_document(source, sizes, made, None, windows, found)
    return document, text(document, layout_of(args))


def _perplexity(args: argparse.Namespace, checkpoint: Checkpoint) -> Result:
    source, config, tokenizer = checkpoint.source, checkpoint.config, checkpoint.tokenizer
    limit, reference = config.max_position_embeddings, _reference_name(args)
    windows = windows_of(limit, tokenizer, args.corpus, args.window, args.tokens)
    with progress_bars() as progress:
        made = _converted(args, checkpoint, progress)
        found = _evaluated(args, source.name, made, reference, windows, config, progress)
    sizes = [checkpoint.parameters] * len(made)
    document = build_document(source, sizes, made, reference, windows, found, tokenizer, args.worst)
    return document, text(document, layout_of(args))


def _evaluated(
    args: argparse.Namespace,
    name: str,
    artefacts: Sequence[Artefact],
    reference: str | None,
    windows: Windows,
    config: ModelConfig | GgufShape,
    progress: Progress,
) -> Evaluated:
    return evaluate(
        [Subject(a.recipe.name, a.path) for a in artefacts],
        reference,
        windows,
        config,
        output_folder(args.out, name) / "eval",
        args.threads or usable_cores(),
        again=args.again,
        progress=lambda artefact, done: progress(f"{artefact}, windows", done),
    )


def _infilling(args: argparse.Namespace, checkpoint: Checkpoint) -> Result:
    tokenizer, reference = checkpoint.tokenizer, _reference_name(args)
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
                output_folder(args.out, checkpoint.source.name) / "eval" / "middles",
                args.threads or usable_cores(),
                partial(progress, name),
                warn=_warn,
            )
    rows, shown = build_rows(holes, middles, reference), samples(holes, middles, args.show)
    document = {
        "model": model_record(checkpoint.source),
        "method": _method(args, settings),
        "reference": reference,
        "rows": rows,
        **({"samples": shown} if args.show else {}),
    }
    return document, (samples_text(shown) + "\n" if shown else "") + fim_text(rows, layout_of(args))


def _holes(args: argparse.Namespace) -> list[Hole]:
    if args.humaneval is not None:
        return read_humaneval(args.humaneval, args.samples)
    texts = list(iter_texts(args.fim or args.corpus))
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
    recipes = list(dict.fromkeys(args.rows or TABLE_11_RECIPES))
    reference = reference_of(args)
    if reference is not None and reference not in recipes:
        recipes.insert(0, reference)
    out = output_folder(args.out, checkpoint.source.name)
    return convert(checkpoint, recipes, out, progress, notice=_warn)


def _warn(sentence: str) -> None:
    print(f"edge eval: warning: {sentence}", file=sys.stderr)


def _reference_name(args: argparse.Namespace) -> str | None:
    reference = reference_of(args)
    return None if reference is None else reference.name

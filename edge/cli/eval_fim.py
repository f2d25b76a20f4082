"""The part of `edge eval` that fills holes whose middles are known."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge.cli.checkpoint import open_named, output_folder
from edge.cli.eval_rows import Progress, converted
from edge.cli.opened import opened
from edge.cli.options.eval import SAMPLES
from edge.cli.progress import progress_bars
from edge.convert.checkpoint import Checkpoint
from edge.convert.convert import Artefact
from edge.device.describe import usable_cores
from edge.errors import EdgeError
from edge.generate.fim import Infiller
from edge.generate.fim_prompt import FimTokens
from edge.generate.llama_source import LlamaSource
from edge.generate.token_source import MlxSource
from edge.llama_cpp.session import LlamaSession
from edge.quality.fim.fill import Settings, fill_all, fill_key, rules_version, window_tokens
from edge.quality.fim.hole import Hole
from edge.quality.fim.humaneval import read_humaneval
from edge.quality.fim.journal import Journal
from edge.quality.fim.rows import Result, build_rows, by_kind, markdown, samples, samples_text
from edge.quality.fim.splits import KINDS, draw_holes
from edge.quality.prepare import check_trained, tokenizer_of
from edge.quality.subject import Subject, computed
from edge.quality.texts import read_texts
from edge.stdout import write_stdout
from edge.tokenizer.tokenizer import Tokenizer

FOLDER = Path("eval", "middles")  # of the journals, beside the artefacts


def run_fim(args: argparse.Namespace) -> int:
    """Cut the holes, convert what is missing, fill, score, print."""
    checkpoint = open_named(args)
    check_trained(checkpoint)
    tokenizer, settings = _tokenizer(checkpoint), _settings(args, checkpoint)
    holes = _holes(args)
    with progress_bars() as progress:
        made = converted(args, checkpoint, progress)
        run = _Run(args, _journals(args, checkpoint), settings, tokenizer, progress)
        results = [result for artefact in made for result in run.results(artefact, holes)]
    _print(args, checkpoint, results)
    return 0


# --- holes


def _holes(args: argparse.Namespace) -> list[Hole]:
    """The holes of one kind after those of another."""
    if args.humaneval is not None:
        return _tasks(args.humaneval, args.samples)

    texts = read_texts(Path(args.fim).expanduser() if args.fim else args.corpus)
    most = args.samples or SAMPLES
    return [hole for kind in KINDS for hole in draw_holes(texts, kind, most, args.seed)]


def _tasks(path: Path, most: int | None) -> list[Hole]:
    """The first tasks of each kind."""
    kinds: dict[str, list[Hole]] = {}
    for hole in read_humaneval(path.expanduser()):
        kinds.setdefault(hole.kind, []).append(hole)
    return [hole for holes in kinds.values() for hole in holes[:most]]


# --- artefacts


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's own, for every artefact alike.

    Raises:
        EdgeError: it has no tokens to fill in the middle with.
    """
    tokenizer = tokenizer_of(checkpoint)
    FimTokens.find(tokenizer.backend_tokenizer)
    return tokenizer


class _Run:
    """What all artefacts have in common."""

    def __init__(
        self,
        args: argparse.Namespace,
        folder: Path,
        settings: Settings,
        tokenizer: Tokenizer,
        progress: Progress,
    ):
        self._args, self._progress, self._tokenizer = args, progress, tokenizer
        self._folder, self._settings = folder, settings

    def results(self, artefact: Artefact, holes: Sequence[Hole]) -> list[Result]:
        """Fill the holes with this artefact, as far as that was not done before; one per kind."""
        settings, name = self._settings, artefact.recipe.name
        key = fill_key(computed(Subject(name, artefact.path)), settings)
        filled = fill_all(
            lambda: self._opened(artefact, settings.window_tokens),
            holes,
            settings,
            Journal(self._folder, key),
            lambda done: self._progress(name, done),
        )
        return by_kind(Result(name, holes, filled))

    @contextlib.contextmanager
    def _opened(self, artefact: Artefact, window_tokens: int) -> Iterator[Infiller]:
        """The artefact on its engine, with the same tokenizer and window for all."""
        if artefact.recipe.is_mlx:
            with opened(artefact.path, self._args.command) as (model, _):
                yield Infiller(MlxSource(model, context_tokens=window_tokens), self._tokenizer)
            return

        threads = self._args.threads or usable_cores()
        session = LlamaSession(artefact.path, window_tokens, threads)
        with contextlib.closing(session):
            yield Infiller(LlamaSource(session, window_tokens), self._tokenizer)


def _settings(args: argparse.Namespace, checkpoint: Checkpoint) -> Settings:
    window = window_tokens(checkpoint.config.max_position_embeddings)
    if args.max_tokens > window // 2:
        raise EdgeError(
            f"--max-tokens {args.max_tokens} leaves too little of the window of {window} tokens to "
            f"the prompt; choose at most {window // 2}."
        )
    return Settings(args.order, args.max_tokens, window)


def _journals(args: argparse.Namespace, checkpoint: Checkpoint) -> Path:
    return output_folder(args.out, checkpoint.source.name) / FOLDER


# --- printing


def _print(args: argparse.Namespace, checkpoint: Checkpoint, results: Sequence[Result]) -> None:
    reference = None if args.reference is None else args.reference.name
    rows, shown = build_rows(results, reference), samples(results, args.show)
    if args.output == "json":
        source = checkpoint.source
        document = {
            "model": {"name": source.name, "source": source.origin, "revision": source.revision},
            "method": _method(args, checkpoint),
            "reference": reference,
            "rows": rows,
            **({"samples": shown} if args.show else {}),
        }
        write_stdout(json.dumps(document, indent=2, allow_nan=False) + "\n")
        return
    write_stdout((samples_text(shown) + "\n" if shown else "") + markdown(rows))


def _method(args: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the rows' numbers depend on."""
    humaneval = args.humaneval is not None
    return {
        "benchmark": "HumanEval infilling" if humaneval else "held-out middles",
        "seed": None if humaneval else args.seed,
        **asdict(_settings(args, checkpoint)),
        "sampling": "greedy",
        "stop_rules": rules_version(),
    }

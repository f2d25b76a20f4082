"""The part of `edge eval` that fills holes whose middles are known."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.cli.arguments import count, count_or_zero, open_named, output_folder
from edge.cli.eval_rows import Progress, converted
from edge.cli.progress import progress_bars
from edge.errors import EdgeError
from edge.stdout import check_stdout, write_stdout

if TYPE_CHECKING:
    from edge.convert.checkpoint import Checkpoint
    from edge.convert.convert import Artefact
    from edge.generate.fim import Infiller
    from edge.quality.fim.fill import Settings
    from edge.quality.fim.hole import Hole
    from edge.quality.fim.rows import Result
    from edge.tokenizer.tokenizer import Tokenizer

SAMPLES = 50
MAX_TOKENS = 128
FOLDER = Path("eval", "middles")  # of the journals, beside the artefacts
FIM_DEFAULTS = {
    "samples": None,
    "order": "psm",
    "max_tokens": MAX_TOKENS,
    "show": 0,
}


def add_fim_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is about middles."""
    group = parser.add_argument_group("middles instead of perplexity")
    group.add_argument(
        "--fim",
        metavar="FILE|DIR",
        nargs="?",
        const="",
        help="fill holes cut out of this code at characters (default: the corpus)",
    )
    group.add_argument(
        "--humaneval",
        metavar="FILE",
        type=Path,
        help="fill the holes of a HumanEval infilling file, JSON lines, plain or gzip",
    )
    group.add_argument(
        "--samples",
        metavar="N",
        type=count,
        help=f"holes of each kind (default: {SAMPLES}; of --humaneval all)",
    )
    group.add_argument(
        "--order",
        choices=["psm", "spm"],
        default="psm",
        help="prefix or suffix first in the prompt (default: psm)",
    )
    group.add_argument(
        "--max-tokens",
        metavar="N",
        type=count,
        default=MAX_TOKENS,
        help=f"at most so many tokens per middle (default: {MAX_TOKENS})",
    )
    group.add_argument(
        "--show",
        metavar="K",
        type=count_or_zero,
        default=0,
        help="print K samples of each kind: what was there, and what came",
    )


def run_fim(args: argparse.Namespace) -> int:
    """Cut the holes, convert what is missing, fill, score, print."""
    from edge.quality.prepare import check_trained

    check_stdout()
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
    if args.fim is not None and args.humaneval is not None:
        raise EdgeError("--fim and --humaneval are two benchmarks; leave one out.")
    if args.corpus is not None and (args.fim or args.humaneval is not None):
        raise EdgeError("--corpus is another source of holes than the one named; leave one out.")
    if args.humaneval is not None:
        return _tasks(args.humaneval, args.samples)
    from edge.quality.fim.splits import KINDS, draw_holes
    from edge.quality.texts import read_texts

    texts = read_texts(Path(args.fim).expanduser() if args.fim else args.corpus)
    most = args.samples or SAMPLES
    return [hole for kind in KINDS for hole in draw_holes(texts, kind, most, args.seed)]


def _tasks(path: Path, most: int | None) -> list[Hole]:
    """The first tasks of each kind."""
    from edge.quality.fim.humaneval import read_humaneval

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
    from edge.generate.fim_prompt import FimTokens
    from edge.quality.prepare import tokenizer_of

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
        from edge.quality.fim.fill import fill_all, fill_key
        from edge.quality.fim.journal import Journal
        from edge.quality.fim.rows import Result, by_kind
        from edge.quality.subject import Subject, computed

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
        from edge.generate.fim import Infiller

        if artefact.recipe.is_mlx:
            from edge.cli.opened import opened
            from edge.generate.token_source import MlxSource

            with opened(artefact.path, self._args.command) as (model, _):
                yield Infiller(MlxSource(model, context_tokens=window_tokens), self._tokenizer)
            return
        from edge.device.describe import usable_cores
        from edge.generate.llama_source import LlamaSource
        from edge.llama_cpp.session import LlamaSession

        threads = self._args.threads or usable_cores()
        session = LlamaSession(artefact.path, window_tokens, threads)
        with contextlib.closing(session):
            yield Infiller(LlamaSource(session, window_tokens), self._tokenizer)


def _settings(args: argparse.Namespace, checkpoint: Checkpoint) -> Settings:
    from edge.quality.fim.fill import Settings, window_tokens

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
    from edge.quality.fim.rows import build_rows, markdown, samples, samples_text

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
    from dataclasses import asdict

    from edge.quality.fim.fill import rules_version

    humaneval = args.humaneval is not None
    return {
        "benchmark": "HumanEval infilling" if humaneval else "held-out middles",
        "seed": None if humaneval else args.seed,
        **asdict(_settings(args, checkpoint)),
        "sampling": "greedy",
        "stop_rules": rules_version(),
    }

"""Options of `edge eval`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.cli.options.shared import (
    add_artefacts,
    add_checkpoint,
    add_max_tokens,
    add_order,
    add_out,
    add_output,
    add_threads,
    artefact,
    count,
    count_or_zero,
)
from edge.convert.artefacts.recipes import Recipe
from edge.errors import EdgeError
from edge.quality import TOKENS, WINDOW_TOKENS, WINDOWS

REFERENCE = "mlx-fp16"
NO_REFERENCE = "none"
SAMPLES = 50
MAX_TOKENS = 128
WINDOW_DEFAULTS = {"tokens": None, "window": None, "worst": 0, "again": False}
FIM_DEFAULTS = {"samples": None, "order": "psm", "max_tokens": MAX_TOKENS, "show": 0}


def parser() -> argparse.ArgumentParser:
    """Parser of the command."""
    parser = argparse.ArgumentParser()
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
    _add_fim(parser.add_argument_group("middles instead of perplexity"))
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of the middles (default: 0)"
    )
    add_threads(parser)
    add_out(parser, "folder of the artefacts and of what was measured")
    add_output(parser, ["md", "json"])
    return parser


def _reference(name: str) -> Recipe | None:
    return None if name == NO_REFERENCE else artefact(name)


def _add_windows(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tokens",
        metavar="N",
        type=count_or_zero,
        help="measure at most this many, spread over the corpus; 0: all of it (default: "
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


def _add_fim(group: argparse._ArgumentGroup) -> None:
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
    add_order(group)
    add_max_tokens(group, MAX_TOKENS, "of a middle")
    group.add_argument(
        "--show",
        metavar="K",
        type=count_or_zero,
        default=0,
        help="print K samples of each kind: what was there, and what came",
    )


def check(args: argparse.Namespace) -> None:
    """Refuse options that would have no effect, and two sources of holes.

    Raises:
        EdgeError: there are some.
    """
    if args.fim is None and args.humaneval is None:
        _refuse(args, FIM_DEFAULTS, "is of middles; name --fim or --humaneval too")
        if args.worst and args.reference is None:
            raise EdgeError(
                "--worst shows what is furthest from a reference; leave out --reference."
            )
        return
    _refuse(args, WINDOW_DEFAULTS, "is of perplexity and not of middles; leave it out")
    if args.fim is not None and args.humaneval is not None:
        raise EdgeError("--fim and --humaneval are two benchmarks; leave one out.")
    if args.corpus is not None and (args.fim or args.humaneval is not None):
        raise EdgeError("--corpus is another source of holes than the one named; leave one out.")


def _refuse(args: argparse.Namespace, defaults: Mapping[str, Any], why: str) -> None:
    for name, default in defaults.items():
        if getattr(args, name) != default:
            raise EdgeError(f"--{name.replace('_', '-')} {why}.")

"""Options of `edge eval`."""

import argparse
from collections.abc import Mapping
from typing import Any

from edge.cli.options import shared
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
    parser = shared.new_parser()
    shared.add_checkpoint(parser, default="demo")
    shared.add_artefacts(parser, "--rows", "what to measure")
    parser.add_argument(
        "--reference",
        metavar="ARTEFACT",
        type=lambda name: None if name == NO_REFERENCE else shared.artefact(name),
        default=shared.artefact(REFERENCE),
        help=f"what to compare with, or {NO_REFERENCE} (default: {REFERENCE})",
    )
    meaning = "text or source code to measure on (default: a sample of code that comes with edge)"
    shared.add_path(parser, "--corpus", metavar="FILE|DIR", help=meaning)
    _add_windows(parser.add_argument_group("perplexity and divergence"))
    _add_fim(parser.add_argument_group("middles instead of perplexity"))
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the middles")
    shared.add_threads(parser)
    shared.add_out(parser, "folder of the artefacts and of what was measured")
    shared.add_output(parser, ["md", "json"])
    return parser


def _add_windows(group: argparse._ArgumentGroup) -> None:
    shared.add_count(
        group,
        "--tokens",
        least=0,
        help="measure at most this many, spread over the corpus; 0: all of it (default: "
        f"{TOKENS}, or {WINDOWS} windows if that is more)",
    )
    shared.add_count(
        group,
        "--window",
        metavar="W",
        help="tokens that are read at once, nothing before them (default: "
        f"{WINDOW_TOKENS}, or the model's context if that is less)",
    )
    meaning = "also print the K positions of each artefact that are furthest from the reference"
    shared.add_count(group, "--worst", least=0, metavar="K", default=0, help=meaning)
    meaning = "measure again what was measured before"
    group.add_argument("--again", action="store_true", help=meaning)


def _add_fim(group: argparse._ArgumentGroup) -> None:
    meaning = "fill holes cut out of this code at characters (default: the corpus)"
    group.add_argument("--fim", metavar="FILE|DIR", nargs="?", const="", help=meaning)
    meaning = "fill the holes of a HumanEval infilling file, JSON lines, plain or gzip"
    shared.add_path(group, "--humaneval", metavar="FILE", help=meaning)
    meaning = f"holes of each kind (default: {SAMPLES}; of --humaneval all)"
    shared.add_count(group, "--samples", help=meaning)
    shared.add_order(group)
    shared.add_max_tokens(group, MAX_TOKENS, "of a middle")
    meaning = "print K samples of each kind: what was there, and what came"
    shared.add_count(group, "--show", least=0, metavar="K", default=0, help=meaning)


def check(args: argparse.Namespace) -> None:
    """Refuse options that would have no effect, and two sources of holes."""
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

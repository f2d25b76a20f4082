"""Options of `edge eval`."""

import argparse
from collections.abc import Sequence

from edge.cli.options import shared
from edge.convert.artefacts.recipes import Recipe
from edge.errors import EdgeError
from edge.quality import TOKENS, WINDOW_TOKENS, WINDOWS

REFERENCE = "mlx-fp16"
NO_REFERENCE = "none"
SAMPLES = 50
MAX_TOKENS = 128
# Options by the names that argparse gives them.
OF_WINDOWS = ("tokens", "window", "worst", "again")
OF_CHECKPOINT = ("worst", "rope_theta", "context")
OF_INFILLING = ("samples", "order", "max_tokens", "show")


def parser() -> argparse.ArgumentParser:
    parser = shared.new_parser()
    meaning = (
        f"{shared.CHECKPOINT}; without --rows GGUF files with one tokenizer, of any model for "
    )
    meaning += "llama.cpp, are measured as they are, without a reference"
    shared.add_model(parser, "model", nargs="*", default=["demo"], help=meaning)
    shared.add_corrections(parser)
    shared.add_artefacts(parser, "--rows", "artefacts to measure")
    parser.set_defaults(rows=None)
    parser.add_argument(
        "--reference",
        metavar="ARTEFACT",
        type=lambda name: name if name == NO_REFERENCE else shared.artefact(name),
        help=f"artefact to compare with, or {NO_REFERENCE} (default: {REFERENCE})",
    )
    meaning = "text or source code to measure on (default: a sample of code that edge includes)"
    shared.add_input(parser, "--corpus", metavar="FILE|DIR", help=meaning)
    _add_windows(parser.add_argument_group("perplexity and KL divergence"))
    _add_fim(parser.add_argument_group("infilling, instead of perplexity and KL divergence"))
    shared.add_threads(parser)
    shared.add_out(parser, "folder of the artefacts and of the stored results")
    shared.add_table_output(parser)
    return parser


def _add_windows(group: argparse._ArgumentGroup) -> None:
    meaning = "maximum tokens, spread over the corpus; 0: all (default: "
    meaning += f"{TOKENS}, or {WINDOWS} windows if that is more)"
    shared.add_count(group, "--tokens", least=0, help=meaning)
    meaning = "tokens per window, scored without the text before it (default: "
    meaning += f"{WINDOW_TOKENS}, or the model's context if that is less)"
    shared.add_count(group, "--window", metavar="W", help=meaning)
    meaning = "also print the K positions of each artefact with the largest KL divergence"
    shared.add_count(group, "--worst", least=0, metavar="K", default=0, help=meaning)
    meaning = "measure again instead of using stored results"
    group.add_argument("--again", action="store_true", help=meaning)


def _add_fim(group: argparse._ArgumentGroup) -> None:
    meaning = "fill holes cut from this code at random characters (default: from the corpus)"
    shared.add_input(group, "--fim", metavar="FILE|DIR", nargs="?", const=False, help=meaning)
    meaning = "fill the holes of a HumanEval infilling file (JSON lines, plain or gzip)"
    shared.add_input(group, "--humaneval", metavar="FILE", help=meaning)
    meaning = f"holes of each kind (default: {SAMPLES}, or all of --humaneval)"
    shared.add_count(group, "--samples", help=meaning)
    group.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the holes")
    shared.add_order(group)
    shared.add_max_tokens(group, MAX_TOKENS)
    meaning = "print K samples of each kind: the expected text and the generated ones"
    shared.add_count(group, "--show", least=0, metavar="K", default=0, help=meaning)


def reference_of(args: argparse.Namespace) -> Recipe | None:
    """The artefact to compare with; None for no comparison."""
    if args.reference == NO_REFERENCE:
        return None
    return args.reference or shared.artefact(REFERENCE)


def check(args: argparse.Namespace) -> None:
    if args.fim is None and args.humaneval is None:
        _refuse(args, OF_INFILLING, "is for infilling; add --fim or --humaneval")
        if args.worst and args.reference == NO_REFERENCE:
            raise EdgeError("--worst compares with a reference; leave out --reference none.")
        return
    _refuse(args, OF_WINDOWS, "is not for infilling; leave it out")
    if args.fim is not None and args.humaneval is not None:
        raise EdgeError("--fim and --humaneval are two benchmarks; leave one out.")
    if args.corpus is not None and (args.fim or args.humaneval is not None):
        raise EdgeError("--corpus is a second source of holes; leave it out.")


def check_files(args: argparse.Namespace) -> None:
    names = (*OF_CHECKPOINT, *(["reference"] if args.reference != NO_REFERENCE else []))
    _refuse(args, names, "is not for a GGUF file as it is; leave it out, or add --rows")


def _refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    for flag in shared.given(args, parser(), names):
        raise EdgeError(f"{flag} {why}.")

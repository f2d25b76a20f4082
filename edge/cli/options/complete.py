"""Options of `edge complete`."""

import argparse

from edge.cli.options import shared
from edge.generate.hole import CURSOR

ARTEFACT = "mlx-fp16"


def parser() -> argparse.ArgumentParser:
    """Parser of the command."""
    parser = shared.new_parser()
    _add_cursor(parser.add_argument_group("the cursor (default: a mark on stdin)"))
    meaning = shared.model_help(ARTEFACT)
    parser.add_argument("--model", metavar="MODEL", default="demo", help=meaning)
    shared.add_order(parser)
    parser.add_argument(
        "--context",
        metavar="FILE",
        nargs="+",
        action="extend",
        default=[],
        help="other files of the repository, the most important last; they get the room that "
        "prefix and suffix leave",
    )
    end = parser.add_argument_group("the end of the middle")
    shared.add_max_tokens(end, 128, "of the middle")
    meaning = "at most this many lines, not counting blank ones before the first"
    shared.add_count(end, "--max-lines", help=meaning)
    end.add_argument(
        "--no-stop-rules",
        action="store_true",
        help="do not end at a blank line, a smaller indentation, a bracket or line that the "
        "suffix has",
    )
    shared.add_sampling(parser, temperature=0)
    shared.add_kv_bits(parser)
    shared.add_output(parser, ["text", "json"])
    return parser


def _add_cursor(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "place",
        metavar="FILE:LINE[:COL]",
        nargs="?",
        help="both from 1, COL in characters: 1 is before the first (default: the line's end)",
    )
    group.add_argument("--prefix", metavar="TEXT", help="the text before the cursor")
    group.add_argument("--suffix", metavar="TEXT", help="the text after it")
    group.add_argument("--cursor", metavar="MARK", default=CURSOR, help="stands once on stdin")

"""Options of `edge complete`."""

from __future__ import annotations

import argparse

from edge.cli.options.shared import (
    add_kv_bits,
    add_max_tokens,
    add_order,
    add_output,
    add_sampling,
    count,
    model_help,
)
from edge.generate.hole import CURSOR

ARTEFACT = "mlx-fp16"


def parser() -> argparse.ArgumentParser:
    """Parser of the command."""
    parser = argparse.ArgumentParser()
    _add_cursor(parser)
    parser.add_argument("--model", metavar="MODEL", default="demo", help=model_help(ARTEFACT))
    add_order(parser)
    parser.add_argument(
        "--context",
        metavar="FILE",
        nargs="+",
        action="extend",
        default=[],
        help="other files of the repository, the most important last; they get the room that "
        "prefix and suffix leave",
    )
    _add_end(parser)
    add_sampling(parser, temperature=0)
    add_kv_bits(parser, "store keys and values in this many bits, for long files on small machines")
    add_output(parser, ["text", "json"])
    return parser


def _add_cursor(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the cursor (default: a mark on stdin)")
    group.add_argument(
        "place",
        metavar="FILE:LINE[:COL]",
        nargs="?",
        help="both from 1, COL in characters: 1 is before the first (default: the line's end)",
    )
    group.add_argument("--prefix", metavar="TEXT", help="the text before the cursor")
    group.add_argument("--suffix", metavar="TEXT", help="the text after it")
    group.add_argument(
        "--cursor", metavar="MARK", default=CURSOR, help=f"stands once on stdin (default: {CURSOR})"
    )


def _add_end(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the end of the middle")
    add_max_tokens(group, 128, "of the middle")
    group.add_argument(
        "--max-lines",
        metavar="N",
        type=count,
        help="at most this many lines, not counting blank ones before the first",
    )
    group.add_argument(
        "--no-stop-rules",
        action="store_true",
        help="do not end at a blank line, a smaller indentation, a bracket or line that the "
        "suffix has",
    )

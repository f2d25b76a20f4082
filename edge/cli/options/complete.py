"""Options of `edge complete`."""

import argparse

from edge.cli.options import shared
from edge.generate import CURSOR

ARTEFACT = "mlx-fp16"


def parser() -> argparse.ArgumentParser:
    parser = shared.new_parser()
    cursor = parser.add_argument_group("cursor (default: a mark in the text on stdin)")
    cursor.add_argument(
        "places",
        metavar="FILE:LINE[:COL]",
        nargs="*",
        help="positions from 1:1; COL counts characters (default: the end of the line)",
    )
    cursor.add_argument("--prefix", metavar="TEXT", help="text before the cursor")
    cursor.add_argument("--suffix", metavar="TEXT", help="text after the cursor")
    meaning = "mark of the cursor on stdin"
    cursor.add_argument("--cursor", metavar="MARK", default=CURSOR, help=meaning)
    meaning = shared.model_help(ARTEFACT)
    shared.add_model(parser, "--model", default="demo", help=meaning)
    shared.add_order(parser)
    meaning = "other files of the repository, the most important last, as far as they fit"
    shared.add_input(
        parser, "--context", metavar="FILE", nargs="+", action="extend", default=[], help=meaning
    )
    stopping = parser.add_argument_group("stopping")
    shared.add_max_tokens(stopping, 128)
    meaning = "maximum lines to generate, not counting leading blank lines"
    shared.add_count(stopping, "--max-lines", help=meaning)
    meaning = "do not stop at a blank line, a dedent, or a bracket or line that the suffix has"
    stopping.add_argument("--no-stop-rules", action="store_true", help=meaning)
    shared.add_sampling(parser, temperature=0)
    shared.add_kv_bits(parser)
    shared.add_output(parser, ["text", "json"])
    return parser

"""Options of `edge doctor`."""

import argparse

from edge.cli.options import shared


def parser() -> argparse.ArgumentParser:
    parser = shared.new_parser()
    shared.add_bandwidth(parser)
    meaning = "test whether the power meters follow a load: half a minute for each"
    parser.add_argument("--meter", action="store_true", help=meaning)
    shared.add_output(parser, ["text", "json"])
    return parser

"""Options of `edge doctor`."""

import argparse

from edge.cli.options import shared


def parser() -> argparse.ArgumentParser:
    parser = shared.new_parser()
    shared.add_bandwidth(parser)
    shared.add_output(parser, ["text", "json"])
    return parser

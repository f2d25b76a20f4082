"""Options of `edge doctor`."""

from __future__ import annotations

import argparse

from edge.cli.options.shared import add_bandwidth, add_output


def parser() -> argparse.ArgumentParser:
    """Parser of the command."""
    parser = argparse.ArgumentParser()
    add_bandwidth(parser)
    add_output(parser, ["text", "json"])
    return parser

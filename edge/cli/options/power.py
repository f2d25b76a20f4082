"""Options of `edge power`."""

import argparse

from edge.cli.options import shared
from edge.errors import EdgeError


def parser() -> argparse.ArgumentParser:
    """Parser of the command."""
    parser = shared.new_parser(
        "COMMAND's exit code is passed on. Where nothing can measure, COMMAND does not run "
        "and the exit code is 1. COMMAND's output stays on stdout, the figures go to stderr; with "
        "-o json it is the other way round. Without COMMAND, --seconds or --replay it measures "
        "until Ctrl-C."
    )
    what = parser.add_mutually_exclusive_group()
    seconds = shared.number(0.001, 1e9, "a number of seconds above 0")
    what.add_argument("--seconds", metavar="N", type=seconds, help="measure for this long")
    meaning = "a log of powermetrics -f plist"
    shared.add_path(what, "--replay", metavar="FILE", help=meaning)
    shared.add_power(parser, "--source", "auto")
    shared.add_output(parser, ["text", "json"])
    parser.add_argument("argv", metavar="COMMAND", nargs="*", help="what to run, after --")
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse a command beside another task."""
    if args.argv and (args.seconds is not None or args.replay is not None):
        raise EdgeError("COMMAND stands alone: leave out --seconds and --replay.")

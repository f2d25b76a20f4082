"""Options of `edge power`."""

import argparse

from edge.cli.options import shared
from edge.errors import EdgeError


def parser() -> argparse.ArgumentParser:
    parser = shared.new_parser(
        "Without COMMAND, --seconds or --replay, measures until Ctrl-C. The exit code is that of "
        "COMMAND, or 1 if no power meter works; COMMAND is then not run. COMMAND writes to stdout "
        "and the results go to stderr; with -o json it is the other way round."
    )
    what = parser.add_mutually_exclusive_group()
    seconds = shared.number(0.001, 1e9, "a number of seconds from 0.001 to 1000000000")
    what.add_argument("--seconds", metavar="N", type=seconds, help="measure for N seconds")
    meaning = "compute the energy of a log of powermetrics -f plist"
    shared.add_input(what, "--replay", metavar="FILE", help=meaning)
    shared.add_power(parser, "--source", "auto")
    shared.add_output(parser, ["text", "json"])
    meaning = "command to measure, after --"
    parser.add_argument("argv", metavar="COMMAND", nargs="*", help=meaning)
    return parser


def check(args: argparse.Namespace) -> None:
    if args.argv and (args.seconds is not None or args.replay is not None):
        raise EdgeError("COMMAND does not go with --seconds or --replay; leave one out.")

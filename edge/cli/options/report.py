"""Options of `edge report`."""

import argparse
from pathlib import Path

from edge.cli.options import shared
from edge.errors import EdgeError

REPORTS = Path("profiles") / "reports"


def parser() -> argparse.ArgumentParser:
    parser = shared.new_parser(
        "For PROFILE, prints the table and writes report.html (self-contained), table.md, "
        "table.csv and plots/ (PNG and SVG). With --check, the exit code is 1 if a profile has a "
        "fault."
    )
    meaning = "profile written by edge bench, or a folder of profiles"
    shared.add_input(parser, "profiles", metavar="PROFILE", nargs="*", help=meaning)
    other = parser.add_mutually_exclusive_group()
    meaning = "compare the devices of all profiles in a folder"
    shared.add_input(other, "--devices", metavar="DIR", help=meaning)
    meaning = "check profiles and print their faults"
    shared.add_path(other, "--check", metavar="PATH", nargs="+", help=meaning)
    for flag, what in (("--chip", "chips"), ("--model", "models")):
        meaning = f"with --devices: only {what} with NAME in their name"
        parser.add_argument(flag, metavar="NAME", help=meaning)
    shared.add_baseline(parser)
    meaning = f"output folder (default: {REPORTS}/NAME)"
    shared.add_path(parser, "--out", metavar="DIR", help=meaning)
    shared.add_table_output(parser)
    return parser


def check(args: argparse.Namespace) -> None:
    alone = "--devices" if args.devices is not None else "--check" if args.check else None
    if alone and (args.profiles or args.out or args.baseline):
        raise EdgeError(f"{alone} does not go with PROFILE, --out or --baseline; leave one out.")
    if (args.chip or args.model) and args.devices is None:
        raise EdgeError("--chip and --model select among devices; add --devices DIR.")
    if not args.profiles and not alone:
        raise EdgeError("there is no profile; give one, such as profiles/local/NAME.json.")

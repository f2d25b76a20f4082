"""Options of `edge report`."""

import argparse
from pathlib import Path

from edge.cli.options import shared
from edge.errors import EdgeError

REPORTS = Path("profiles") / "reports"


def parser() -> argparse.ArgumentParser:
    """Parser of the command."""
    parser = shared.new_parser(
        "Writes report.html (one page that needs nothing else), table.md, table.csv and "
        "plots/ as PNG and SVG, and prints the table. --devices prints one comparison of all "
        "profiles in a folder. --check exits with 1 if anything is wrong."
    )
    meaning = "a JSON file that `edge bench` wrote, or a folder of them"
    shared.add_path(parser, "profiles", metavar="PROFILE", nargs="*", help=meaning)
    other = parser.add_mutually_exclusive_group()
    meaning = "compare the devices of all profiles in it"
    shared.add_path(other, "--devices", metavar="DIR", help=meaning)
    meaning = "say what is wrong with profiles"
    shared.add_path(other, "--check", metavar="PATH", nargs="+", help=meaning)
    parser.add_argument("--chip", metavar="NAME", help="with --devices: only chips named so")
    parser.add_argument("--model", metavar="NAME", help="with --devices: only models named so")
    meaning = f"output folder (default: {REPORTS}/NAME)"
    shared.add_path(parser, "--out", metavar="DIR", help=meaning)
    shared.add_output(parser, ["md", "json"])
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse nothing to do, and options that do not go together."""
    alone = "--devices" if args.devices is not None else "--check" if args.check else None
    if alone and (args.profiles or args.out):
        raise EdgeError(f"{alone} stands alone: leave out PROFILE and --out, or {alone}.")
    if (args.chip or args.model) and args.devices is None:
        raise EdgeError("--chip and --model choose among many profiles: give --devices DIR too.")
    if not args.profiles and not alone:
        raise EdgeError("Nothing to report: name a profile, such as profiles/local/NAME.json.")

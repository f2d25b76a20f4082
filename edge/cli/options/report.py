"""Options of `edge report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge.cli.options.shared import add_output
from edge.errors import EdgeError

REPORTS = Path("profiles") / "reports"


def parser() -> argparse.ArgumentParser:
    """Parser of the command."""
    parser = argparse.ArgumentParser(
        epilog="Writes report.html (one page that needs nothing else), table.md, table.csv and "
        "plots/ as PNG and SVG, and prints the table. --devices prints one comparison of all "
        "profiles in a folder. --check exits with 1 if anything is wrong."
    )
    parser.add_argument(
        "profiles",
        metavar="PROFILE",
        nargs="*",
        type=Path,
        help="a JSON file that `edge bench` wrote, or a folder of them",
    )
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--devices", metavar="DIR", type=Path, help="compare the devices of all profiles in it"
    )
    other.add_argument(
        "--check", metavar="PATH", nargs="+", type=Path, help="say what is wrong with profiles"
    )
    parser.add_argument("--chip", metavar="NAME", help="with --devices: only chips named so")
    parser.add_argument("--model", metavar="NAME", help="with --devices: only models named so")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help=f"output folder (default: {REPORTS}/NAME)"
    )
    add_output(parser, ["md", "json"])
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse nothing to do, and options that do not go together.

    Raises:
        EdgeError: it is so.
    """
    alone = "--devices" if args.devices is not None else "--check" if args.check else None
    if alone and (args.profiles or args.out):
        raise EdgeError(f"{alone} stands alone: leave out PROFILE and --out, or {alone}.")
    if (args.chip or args.model) and args.devices is None:
        raise EdgeError("--chip and --model choose among many profiles: give --devices DIR too.")
    if not args.profiles and not alone:
        raise EdgeError("Nothing to report: name a profile, such as profiles/local/NAME.json.")

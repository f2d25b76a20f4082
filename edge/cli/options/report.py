"""Options of `edge report`."""

import argparse
from pathlib import Path

from edge.cli.options import shared
from edge.errors import EdgeError

REPORTS = Path("profiles") / "reports"
IMPORTED = Path("profiles") / "local"


def parser() -> argparse.ArgumentParser:
    parser = shared.new_parser(
        "For PROFILE, prints the table and writes report.html (self-contained), table.md, "
        "table.csv and plots/ (PNG and SVG). With --check, the exit code is 1 if a profile has a "
        "fault or a result is INVALID. --check and --import read also what `llama-bench -o json` "
        "or `-o jsonl` and mlx_lm.benchmark printed."
    )
    meaning = "profile written by edge bench, or a folder of profiles"
    shared.add_input(parser, "profiles", metavar="PROFILE", nargs="*", help=meaning)
    other = parser.add_mutually_exclusive_group()
    meaning = "compare the devices of all profiles in a folder"
    shared.add_input(other, "--devices", metavar="DIR", help=meaning)
    meaning = "check profiles and print their faults; judge the results of other programs"
    shared.add_path(other, "--check", metavar="PATH", nargs="+", help=meaning)
    meaning = f"save the results of other programs as profiles, in {IMPORTED} or --out"
    shared.add_input(other, "--import", dest="imported", metavar="FILE", nargs="+", help=meaning)
    for flag, what in (("--chip", "chip"), ("--model", "model")):
        only = f"with --devices: only {what}s with NAME in their name"
        meaning = f"{only}; with --check or --import: the {what} of the results"
        parser.add_argument(flag, metavar="NAME", help=meaning)
    shared.add_baseline(parser)
    meaning = "with --check or --import: the machine was on mains power"
    parser.add_argument("--mains", action="store_true", help=meaning)
    shared.add_bandwidth(parser, "with --check or --import: memory bandwidth of the machine")
    meaning = f"output folder (default: {REPORTS}/NAME)"
    shared.add_path(parser, "--out", metavar="DIR", help=meaning)
    shared.add_table_output(parser)
    return parser


def check(args: argparse.Namespace) -> None:
    given = {"--devices": args.devices, "--check": args.check, "--import": args.imported}
    alone = next((flag for flag, value in given.items() if value is not None), None)
    if alone and (args.profiles or args.baseline or (args.out and alone != "--import")):
        raise EdgeError(f"{alone} does not go with PROFILE, --out or --baseline; leave one out.")
    if (args.chip or args.model) and not alone:
        raise EdgeError("--chip and --model need --devices DIR, --check or --import; add one.")
    if (args.mains or args.bandwidth_gb_s) and not (args.check or args.imported):
        raise EdgeError("--mains and --bandwidth-gb-s need --check or --import; add one.")
    if not args.profiles and not alone:
        raise EdgeError("there is no profile; give one, such as profiles/local/NAME.json.")

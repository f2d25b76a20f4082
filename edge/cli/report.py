"""Make tables, plots and a page from profiles; compare devices; check and import results."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from edge.cli.options.report import IMPORTED, REPORTS
from edge.cli.options.shared import layout_of
from edge.errors import EdgeError, printable
from edge.formats.files import atomic_write, check_writable, new_file, safe_name, visible
from edge.profile.baseline import with_ratios
from edge.profile.check import check
from edge.profile.foreign import NOT_STATED
from edge.profile.imported import Told, import_results, judged_rows
from edge.profile.profile import MAX_BYTES, Profile, decode, read_bytes, write
from edge.report.devices import DeviceComparison, compare_devices, devices_text
from edge.report.table import provenance, terminal_section
from edge.text import csv_text

# A page of more is too large for a browser; `--devices` reads any number.
MOST_PROFILES = 50


def run(args: argparse.Namespace) -> int:
    """Write a report, compare devices or check profiles; 1 if `--check` found a fault."""
    if args.devices is not None:
        return _compare_devices(args)
    if args.imported is not None:
        return _import(args)
    return _report(args) if args.check is None else _check(args)


def _report(args: argparse.Namespace) -> int:
    # Imported here: matplotlib takes most of a second, and --check and --devices do not need it.
    from edge.report.page import report_files

    paths = [path for name in args.profiles for path in _files_of(name)]
    if len(paths) > MOST_PROFILES:
        raise EdgeError(
            f"{len(paths)} profiles are too many for one page of up to {MOST_PROFILES}; give "
            f"fewer, or compare them with --devices DIR."
        )
    data: list[bytes] = []
    for path in paths:
        data.append(read_bytes(path))
        if sum(map(len, data)) > MAX_BYTES:
            raise EdgeError(
                f"the profiles are too large for one page, with more than {MAX_BYTES // 10**6} MB "
                f"up to {path}; give fewer."
            )
    read = (decode(text, path, Profile) for text, path in zip(data, paths, strict=True))
    profiles = [with_ratios(profile, args.baseline) for profile in read]
    contents = dict(report_files(list(zip(profiles, data, strict=True))))
    others = f"-and-{len(paths) - 1}-more" if len(paths) > 1 else ""
    folder = args.out if args.out is not None else REPORTS / safe_name(f"{paths[0].stem}{others}")
    for name, made in contents.items():  # file by file: others in the folder stay
        with atomic_write(folder / name) as partial:
            partial.write_bytes(made)
    page, markdown, table, *plots = [str(folder / name) for name in contents]
    if args.output == "json":
        document: dict[str, Any] = {
            "profiles": [str(path) for path in paths],
            "folder": str(folder),
        }
        document |= {"page": page, "markdown": markdown, "csv": table, "plots": plots}
        if any(found := [_ratios(profile) for profile in profiles]):
            document["ratios"] = found
        print(json.dumps(document, indent=1))
        return 0
    layout = layout_of(args)
    if layout is not None:
        for profile in profiles:
            print(terminal_section(profile, layout), end="\n\n")
            print(layout.wrapped(provenance(profile)), end="\n\n")
    else:
        print(contents["table.csv" if args.output == "csv" else "table.md"].decode(), end="")
    saved = [f"{len(plots)} plots in {folder / 'plots'}"] if plots else []
    for file in (*saved, markdown, table, page):
        print(f"saved {file}", file=sys.stderr)
    return 0


def _ratios(profile: Profile) -> list[dict[str, Any]]:
    """The rows' ratios to their baselines."""
    return [
        {
            "row": row.with_peer(row.artefact),
            **{"workload": str(row.workload), "baseline": row.baseline},
            **msgspec.to_builtins(row.ratios),
        }
        for row in profile.rows
        if row.ratios
    ]


def _files_of(path: Path) -> list[Path]:
    """Profiles in a folder, else the path itself: reading it says what is wrong."""
    if not path.is_dir():
        return [path]
    found = [p for p in visible(path) if p.suffix.lower() == ".json" and not p.is_dir()]
    if not found:
        raise EdgeError(f"{path} has no profile; give a folder of *.json that edge bench wrote.")
    return found


def _compare_devices(args: argparse.Namespace) -> int:
    print_devices(args, compare_devices(args.devices, chip=args.chip, model=args.model))
    return 0


def print_devices(args: argparse.Namespace, found: DeviceComparison) -> None:
    if args.output == "json":
        print(json.dumps(asdict(found), indent=1, allow_nan=False))
    elif args.output == "csv":
        print(csv_text(found.rows), end="")
    else:
        print(devices_text(found, layout_of(args)))


def _check(args: argparse.Namespace) -> int:
    found = check(args.check, told=_told(args))
    if args.output == "json":
        print(json.dumps(asdict(found), indent=1))
    else:
        _print_lines(args, found.text())
    return 0 if found.is_good else 1


def _print_lines(args: argparse.Namespace, text: str) -> None:
    """Lines, on a terminal wrapped to its width; those of a list keep their indent."""
    layout = layout_of(args)
    for line in map(printable, text.splitlines()):
        begin = "  - " if line.startswith("  - ") else ""
        print(layout.wrapped(line.removeprefix(begin), begin) if layout else line)


def _told(args: argparse.Namespace) -> Told:
    return Told(args.chip, args.model, args.bandwidth_gb_s, args.mains)


def _import(args: argparse.Namespace) -> int:
    found = [(path, import_results(read_bytes(path), path, _told(args))) for path in args.imported]
    saved, judged = [], []
    for path, profile in found:
        if profile is None:
            raise EdgeError(
                f"{path} is not from llama-bench (-o json or jsonl) or mlx_lm.benchmark; give what "
                f"one of these printed."
            )
        if NOT_STATED in (profile.device.name, profile.model.name):
            raise EdgeError(f"{path} does not name its chip or model; add --chip and --model.")
        folder = args.out or IMPORTED
        check_writable(folder)
        file = new_file(folder / safe_name(f"{path.stem}.json"))
        write(profile, file)
        saved.append(str(file))
        judged += judged_rows(printable(str(path)), profile)
    if args.output == "json":
        print(json.dumps({"saved": saved, "judged": [asdict(one) for one in judged]}, indent=1))
        return 0
    _print_lines(args, "\n".join(map(str, judged)))
    for name in saved:
        print(f"saved {name}", file=sys.stderr)
    return 0

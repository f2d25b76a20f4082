"""Make tables, plots and a page from profiles; compare devices; check profiles."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.cli.options.report import REPORTS
from edge.cli.options.report import check as check_options
from edge.errors import EdgeError, printable
from edge.formats.files import atomic_write
from edge.profile.check import check
from edge.report.devices import compare_devices

if TYPE_CHECKING:
    from edge.report.frame import NamedFigure

PLOTS = "plots"
# A page of more is no page; `--devices` reads any number.
MOST_PROFILES = 50


def run(args: argparse.Namespace) -> int:
    """Report, compare or check, whichever is asked for.

    Returns:
        0; 1 if `--check` found something.

    Raises:
        EdgeError: nothing or two things asked for; a profile cannot be read; a folder cannot be
            written.
    """
    check_options(args)
    if args.devices is not None:
        return _compare_devices(args)
    if args.check is not None:
        return _check(args)
    return _report(args)


def _report(args: argparse.Namespace) -> int:
    """Everything is made before anything is written: no half report."""
    # Here: matplotlib takes most of a second, and --check and --devices need none.
    from edge.report.markdown import markdown_report
    from edge.report.plots import figures
    from edge.report.tidy import read_for_report

    paths = _profile_files(args.profiles)
    profiles = [read_for_report(path) for path in paths]
    drawn = [figures(profile) for profile in profiles]
    markdown = markdown_report(profiles)
    folder = args.out if args.out is not None else REPORTS / _name_of(paths)
    files = _write(folder, _contents(profiles, drawn, markdown))
    if args.output == "json":
        print(json.dumps(_document(paths, folder, files), indent=1))
        return 0
    print(markdown)
    _say_saved(folder, files)
    return 0


def _say_saved(folder: Path, files: Sequence[Path]) -> None:
    """The page last, where one looks."""
    page, *tables = files[:3]
    if plots := len(files) - len(tables) - 1:
        print(f"saved {plots} plots in {folder / PLOTS}", file=sys.stderr)
    for file in (*tables, page):
        print(f"saved {file}", file=sys.stderr)


def _profile_files(given: Sequence[Path]) -> list[Path]:
    paths = [path for name in given for path in _files_of(name)]
    if len(paths) > MOST_PROFILES:
        raise EdgeError(
            f"{len(paths)} profiles are too many for one page of up to {MOST_PROFILES}: name "
            f"fewer, or compare them with --devices DIR."
        )
    return paths


def _files_of(path: Path) -> list[Path]:
    """A folder's profiles, else the path itself, whatever it is: reading says what is wrong."""
    try:
        if not path.is_dir():
            return [path]
        found = sorted(p for p in path.glob("*.json") if p.is_file())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise EdgeError(f"{path} cannot be read ({error}): check the path.") from None
    if not found:
        raise EdgeError(
            f"{path} holds no profile: give a folder of *.json that `edge bench` wrote."
        )
    return found


def _name_of(paths: Sequence[Path]) -> str:
    others = len(paths) - 1
    return paths[0].stem + (f"-and-{others}-more" if others else "")


def _contents(
    profiles: Sequence[dict[str, Any]], drawn: Sequence[Sequence[NamedFigure]], markdown: str
) -> Iterator[tuple[str, bytes]]:
    """Every file's place in the folder and its bytes."""
    from edge.report.csv_table import csv_table
    from edge.report.figure import to_png, to_svg
    from edge.report.page import render_page

    yield "report.html", render_page(profiles, drawn).encode()
    yield "table.md", markdown.encode()
    yield "table.csv", csv_table(profiles).encode()
    for number, plots in enumerate(drawn, 1):
        prefix = f"{number}-" if len(drawn) > 1 else ""
        for plot in plots:
            yield f"{PLOTS}/{prefix}{plot.name}.svg", to_svg(plot.figure).encode()
            yield f"{PLOTS}/{prefix}{plot.name}.png", to_png(plot.figure)


def _write(folder: Path, contents: Iterator[tuple[str, bytes]]) -> list[Path]:
    """Each file appears whole; other files in the folder stay as they are."""
    files = []
    for name, data in list(contents):
        with atomic_write(folder / name) as partial:
            partial.write_bytes(data)
        files.append(folder / name)
    return files


def _document(paths: Sequence[Path], folder: Path, files: Sequence[Path]) -> dict[str, Any]:
    page, markdown, table, *plots = map(str, files)
    return {
        "profiles": [str(path) for path in paths],
        "folder": str(folder),
        "page": page,
        "markdown": markdown,
        "csv": table,
        "plots": plots,
    }


def _compare_devices(args: argparse.Namespace) -> int:
    found = compare_devices(args.devices, chip=args.chip, model=args.model)
    if args.output == "json":
        print(json.dumps(found.to_dict(), indent=1, allow_nan=False))
    else:
        print(found.markdown())
    return 0


def _check(args: argparse.Namespace) -> int:
    found = check(args.check)
    if args.output == "json":
        print(json.dumps(found.to_dict(), indent=1))
    else:
        for line in found.text().splitlines():
            print(printable(line))
    return found.exit_code

"""Arguments that more than one command takes, and their checks."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge.checkpoints.artefacts.recipes import RECIPES, TABLE_11, Recipe, find_recipe
from edge.errors import EdgeError


def add_artefacts(parser: argparse.ArgumentParser, flag: str, purpose: str) -> None:
    """Declare an option that takes artefacts' names, Table 11's rows by default."""
    parser.add_argument(
        flag,
        nargs="+",
        type=artefact,
        metavar="ARTEFACT",
        default=[artefact(name) for name in TABLE_11],
        help=f"{purpose}, of {', '.join(RECIPES)} (default: {' '.join(TABLE_11)})",
    )


def artefact(name: str) -> Recipe:
    """An artefact's name, for argparse."""
    try:
        return find_recipe(name)
    except EdgeError as error:
        raise argparse.ArgumentTypeError(f"{error} MODEL goes before the artefacts.") from None


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    return _at_least(text, 1)


def count_or_zero(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value


def output_folder(out: Path | None, name: str) -> Path:
    """`--out`, or models/NAME."""
    return out if out is not None else Path("models") / name

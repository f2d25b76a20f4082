"""Arguments that more than one command takes, and their checks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge.convert.artefacts.recipes import RECIPES, TABLE_11, Recipe, find_recipe
from edge.errors import EdgeError

if TYPE_CHECKING:
    from edge.convert.checkpoint import Checkpoint

LARGEST_COUNT = 2**31 - 1  # files hold 32 bits
# No trained model is near either; float32 holds both.
SMALLEST_BASE, LARGEST_BASE = 1.0, 1e30


def add_checkpoint(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Declare what names a checkpoint; without a default it is None where it is not given."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default=default,
        help="demo, a checkpoint's directory, a GGUF file, a hub id (owner/name or "
        "owner/name:branch), or synthetic:NAME for random weights at a published shape"
        + (f" (default: {default})" if default else ""),
    )
    source = parser.add_argument_group("the checkpoint")
    source.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    source.add_argument("--layers", metavar="N", type=count, help="layers of a synthetic model")
    source.add_argument(
        "--rope-theta",
        metavar="BASE",
        type=rotary_base,
        help="rotary base, if the source's is wrong",
    )
    source.add_argument(
        "--context", metavar="N", type=count, help="positions, if the source's number is wrong"
    )


def open_named(args: argparse.Namespace) -> Checkpoint:
    """The checkpoint that the arguments of `add_checkpoint` name; doubts go to stderr.

    Raises:
        EdgeError: it cannot be found or is broken.
    """
    from edge.convert.checkpoint import Corrections, open_checkpoint

    corrections = Corrections(args.layers, args.rope_theta, args.context)
    checkpoint = open_checkpoint(args.model, args.revision, corrections)
    for warning in checkpoint.warnings:
        print(f"edge {args.command}: warning: {warning}", file=sys.stderr)
    return checkpoint


def add_artefacts(
    parser: argparse.ArgumentParser, flag: str, purpose: str, also: tuple[Recipe, ...] = ()
) -> None:
    """Declare an option that takes artefacts' names, Table 11's rows by default."""
    choices = {**RECIPES, **{recipe.name: recipe for recipe in also}}

    def named(name: str) -> Recipe:
        return choices[name] if name in choices else artefact(name)

    parser.add_argument(
        flag,
        nargs="+",
        type=named,
        metavar="ARTEFACT",
        default=table_11(),
        help=f"{purpose}, of {', '.join(choices)} (default: {' '.join(TABLE_11)})",
    )


def table_11() -> list[Recipe]:
    """The rows of Table 11."""
    return [artefact(name) for name in TABLE_11]


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


def rotary_base(text: str) -> float:
    """A number above 0 that float32 holds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not SMALLEST_BASE <= value <= LARGEST_BASE:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number from {SMALLEST_BASE:g} to {LARGEST_BASE:g}"
        )
    return value


def _at_least(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    if value > LARGEST_COUNT:
        raise argparse.ArgumentTypeError(f"{text} is more than {LARGEST_COUNT}")
    return value


def output_folder(out: Path | None, name: str) -> Path:
    """`--out`, or models/NAME."""
    return out if out is not None else Path("models") / name

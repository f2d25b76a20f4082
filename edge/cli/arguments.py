"""Arguments that more than one command takes, and their checks."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge.checkpoints.recipes import RECIPES, Recipe


def artefact(name: str) -> Recipe:
    """An artefact's name, for argparse."""
    if name not in RECIPES:
        raise argparse.ArgumentTypeError(
            f"unknown artefact {name!r}; choose from {list_names()} (MODEL goes before them)"
        )
    return RECIPES[name]


def list_names() -> str:
    """All artefacts, for help texts."""
    return ", ".join(RECIPES)


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

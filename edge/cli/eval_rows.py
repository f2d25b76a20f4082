"""What both parts of `edge eval` have: artefacts to measure, and options of the other part."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edge.cli.arguments import output_folder
from edge.errors import EdgeError

if TYPE_CHECKING:
    from edge.convert.artefacts.recipes import Recipe
    from edge.convert.checkpoint import Checkpoint
    from edge.convert.convert import Artefact

Progress = Callable[[str, float], None]


def converted(
    args: argparse.Namespace, checkpoint: Checkpoint, progress: Progress
) -> list[Artefact]:
    """The rows in the order asked for; the reference first where it is not among them.

    Raises:
        EdgeError: one of them cannot be made.
    """
    from edge.convert.convert import convert

    recipes: list[Recipe] = list(dict.fromkeys(args.rows))
    if args.reference is not None and args.reference not in recipes:
        recipes.insert(0, args.reference)
    return convert(checkpoint, recipes, output_folder(args.out, checkpoint.source.name), progress)


def check_unused(args: argparse.Namespace, defaults: Mapping[str, Any], why: str) -> None:
    """Refuse an option that would be without effect.

    Args:
        args: what was given.
        defaults: of the options that have none.
        why: the end of the sentence.

    Raises:
        EdgeError: one of them was given.
    """
    for name, default in defaults.items():
        if getattr(args, name) != default:
            raise EdgeError(f"--{name.replace('_', '-')} {why}.")

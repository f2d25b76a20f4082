"""What both parts of `edge eval` have: artefacts to measure, and options of the other part."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from edge.cli.checkpoint import output_folder
from edge.convert.artefacts.recipes import Recipe
from edge.convert.checkpoint import Checkpoint
from edge.convert.convert import Artefact, convert

Progress = Callable[[str, float], None]


def converted(
    args: argparse.Namespace, checkpoint: Checkpoint, progress: Progress
) -> list[Artefact]:
    """The rows in the order asked for; the reference first where it is not among them.

    Raises:
        EdgeError: one of them cannot be made.
    """
    recipes: list[Recipe] = list(dict.fromkeys(args.rows))
    if args.reference is not None and args.reference not in recipes:
        recipes.insert(0, args.reference)
    return convert(checkpoint, recipes, output_folder(args.out, checkpoint.source.name), progress)

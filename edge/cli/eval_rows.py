"""The artefacts that both parts of `edge eval` measure."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge.cli.arguments import output_folder

if TYPE_CHECKING:
    from edge.checkpoints.artefacts.recipes import Recipe
    from edge.checkpoints.checkpoint import Checkpoint
    from edge.checkpoints.convert import Artefact

Progress = Callable[[str, float], None]


def converted(
    args: argparse.Namespace, checkpoint: Checkpoint, progress: Progress
) -> list[Artefact]:
    """The rows in the order asked for; the reference first where it is not among them.

    Raises:
        EdgeError: one of them cannot be made.
    """
    from edge.checkpoints.convert import convert

    recipes: list[Recipe] = list(dict.fromkeys(args.rows))
    if args.reference is not None and args.reference not in recipes:
        recipes.insert(0, args.reference)
    return convert(checkpoint, recipes, output_folder(args.out, checkpoint.source.name), progress)

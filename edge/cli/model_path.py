"""From the model that a command names to a directory that `edge.load` opens."""

from __future__ import annotations

import sys
from pathlib import Path

import edge
from edge.errors import EdgeError

DEMO = Path(edge.__file__).parent / "data" / "demo"


def runnable(model: str, command: str, artefact: str) -> Path:
    """A directory that `edge.load` opens; a named checkpoint's is made when it is missing.

    The demo is opened where it lies: it is as small as its artefact, and finding out whether
    there is one takes longer than a short completion.

    Args:
        model: what the user named.
        command: whose warnings these are.
        artefact: what is made of a checkpoint.

    Raises:
        EdgeError: there is no such model, or it cannot be converted.
    """
    if model == "demo":
        return DEMO
    path = Path(model).expanduser()
    if path.is_dir():
        _check_is_model(path)
        return path
    return _converted(model, command, artefact)


def _check_is_model(path: Path) -> None:
    """A folder of artefacts is no model, but holds some."""
    if (path / "config.json").exists():
        return
    inside = sorted(p.parent.name for p in path.glob("*/config.json"))
    if inside:
        raise EdgeError(
            f"{path} is no model but a folder with some; name one of them: "
            f"{', '.join(str(path / name) for name in inside)}."
        )


def _converted(model: str, command: str, artefact: str) -> Path:
    # Here: an artefact opens in a third of the time without them.
    from edge.cli.checkpoint import output_folder
    from edge.cli.progress import progress_bars
    from edge.convert.artefacts.recipes import find_recipe
    from edge.convert.checkpoint import open_checkpoint
    from edge.convert.convert import convert

    checkpoint = open_checkpoint(model)
    for warning in checkpoint.warnings:
        print(f"edge {command}: warning: {warning}", file=sys.stderr)
    recipes = [find_recipe(artefact)]
    out = output_folder(None, checkpoint.source.name)
    if recipes[0].path_in(out).exists():
        return convert(checkpoint, recipes, out, _unseen)[0].path
    with progress_bars() as progress:
        return convert(checkpoint, recipes, out, progress)[0].path


def _unseen(name: str, done: float) -> None:
    """No progress to show for a look at what is there."""

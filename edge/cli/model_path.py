"""Find, convert if necessary, and load the model that `edge chat` or `edge complete` runs."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import edge
from edge.errors import EdgeError
from edge.model.load import Loaded, open_model
from edge.tokenizer.tokenizer import Tokenizer

# Loaded directly: it is as small as its artefact, and looking for one takes longer than a short
# completion.
DEMO = Path(edge.__file__).parent / "data" / "demo"


def runnable(
    model: str, command: str, artefact: str, check: Callable[[Tokenizer], object] | None = None
) -> Path:
    """Directory of a model; a checkpoint that is not one is converted if its artefact is missing.

    `check` may refuse the tokenizer before that.

    Raises:
        EdgeError: it is a folder of models, or cannot be converted.
    """
    path = DEMO if model == "demo" else Path(model).expanduser()
    if not path.is_dir():
        return _converted(model, command, artefact, check)
    inside = sorted(p.parent for p in path.glob("*/config.json"))
    if inside and not (path / "config.json").exists():
        raise EdgeError(
            f"{path} is a folder of models; name one of them: {', '.join(map(str, inside))}."
        )
    return path


def open_for(command: str, path: Path, kv_bits: int | None = None) -> Loaded:
    """Load a model; a warning that memory is short goes to stderr."""
    return open_model(path, kv_bits, lambda warning: _warn(command, warning))


def _converted(
    model: str, command: str, artefact: str, check: Callable[[Tokenizer], object] | None
) -> Path:
    # Imported here: an artefact opens in a third of the time without them.
    from edge.cli.checkpoint import output_folder, progress_bars
    from edge.convert.artefacts.recipes import find_recipe
    from edge.convert.checkpoint import open_checkpoint
    from edge.convert.convert import convert

    checkpoint = open_checkpoint(model)
    for warning in checkpoint.warnings:
        _warn(command, warning)
    recipe, out = find_recipe(artefact), output_folder(None, checkpoint.source.name)
    # No progress bar for an artefact that exists and is only checked.
    exists = recipe.path_in(out).exists()
    if check is not None and not exists:
        check(checkpoint.tokenizer)
    with contextlib.nullcontext(lambda *_: None) if exists else progress_bars() as progress:
        return convert(checkpoint, [recipe], out, progress)[0].path


def _warn(command: str, warning: str) -> None:
    print(f"edge {command}: warning: {warning}", file=sys.stderr)

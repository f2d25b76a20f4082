"""From the model that a command names to one that is loaded."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import edge
from edge.device.memory import wired
from edge.errors import EdgeError
from edge.model.load import Loaded, open_model
from edge.model.stablelm import Model
from edge.tokenizer.tokenizer import Tokenizer

DEMO = Path(edge.__file__).parent / "data" / "demo"


def runnable(model: str, command: str, artefact: str) -> Path:
    """A directory that `edge.load` opens; a named checkpoint's is made when it is missing.

    The demo is opened where it lies: it is as small as its artefact, and finding out if there
    is one takes longer than a short completion. Warnings go to stderr.
    """
    path = DEMO if model == "demo" else Path(model).expanduser()
    if not path.is_dir():
        return _converted(model, command, artefact)
    inside = sorted(p.parent.name for p in path.glob("*/config.json"))
    if inside and not (path / "config.json").exists():
        raise EdgeError(
            f"{path} is not a model but a folder with some; name one of them: "
            f"{', '.join(str(path / name) for name in inside)}."
        )
    return path


def open_for(command: str, path: Path, kv_bits: int | None = None) -> Loaded:
    """A model with its tokenizer; a warning that memory is short goes to stderr."""
    return open_model(path, kv_bits, lambda warning: _warn(command, warning))


@contextlib.contextmanager
def opened(
    path: Path, command: str, kv_bits: int | None = None
) -> Iterator[tuple[Model, Tokenizer]]:
    """A model and its tokenizer, resident while the block runs where that can be asked for."""
    model, tokenizer, need = open_for(command, path, kv_bits)
    with wired(need.running_bytes):
        yield model, tokenizer


def _converted(model: str, command: str, artefact: str) -> Path:
    # Here: an artefact opens in a third of the time without them.
    from edge.cli.checkpoint import output_folder
    from edge.cli.progress import progress_bars
    from edge.convert.artefacts.recipes import find_recipe
    from edge.convert.checkpoint import open_checkpoint
    from edge.convert.convert import convert

    checkpoint = open_checkpoint(model)
    for warning in checkpoint.warnings:
        _warn(command, warning)
    recipes = [find_recipe(artefact)]
    out = output_folder(None, checkpoint.source.name)
    # A look at what is there shows no progress.
    exists = recipes[0].path_in(out).exists()
    with contextlib.nullcontext(lambda *_: None) if exists else progress_bars() as progress:
        return convert(checkpoint, recipes, out, progress)[0].path


def _warn(command: str, warning: str) -> None:
    print(f"edge {command}: warning: {warning}", file=sys.stderr)

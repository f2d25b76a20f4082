"""From one checkpoint to its artefacts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge.atomic import appears_whole, remove
from edge.checkpoints.artefacts.gguf import FLOAT16, FLOAT32, write_gguf
from edge.checkpoints.artefacts.gguf_quantise import quantise
from edge.checkpoints.artefacts.gguf_tokenizer import read_tokenizer
from edge.checkpoints.artefacts.manifest import read_fingerprint
from edge.checkpoints.artefacts.mlx import write_mlx
from edge.checkpoints.artefacts.recipes import RECIPES, Recipe
from edge.checkpoints.checkpoint import Checkpoint
from edge.errors import EdgeError

# Told (artefact name, finished fraction 0 to 1).
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Artefact:
    """A finished artefact; `kept` if it was there already."""

    recipe: Recipe
    path: Path
    kept: bool


def convert(
    checkpoint: Checkpoint,
    recipes: Sequence[Recipe],
    out: Path,
    force: bool,
    progress: Progress,
) -> list[Artefact]:
    """Make what is missing.

    Args:
        checkpoint: what to convert.
        recipes: what to make of it.
        out: the folder that holds the artefacts.
        force: make them even if they are there.
        progress: told how far each one is.

    Raises:
        EdgeError: an artefact of another checkpoint is in the way, or writing failed.
    """
    wanted = list(dict.fromkeys(recipes))
    fingerprint = checkpoint.fingerprint()
    missing = [r for r in wanted if force or not _is_there(r, out, fingerprint)]
    if not all(recipe.is_mlx for recipe in missing):
        # What GGUF cannot express is found before gigabytes are written.
        read_tokenizer(checkpoint.path, checkpoint.config.vocab_size)
    for recipe in missing:
        if recipe.is_mlx:
            _make_mlx(checkpoint, recipe, out, progress)
        elif recipe.file_type in (FLOAT16, FLOAT32):
            _make_float_gguf(checkpoint, recipe, out, progress)
    # After the float files, so that an f16 asked for as well serves as the quantiser's input.
    quantised = [r for r in missing if not r.is_mlx and r.file_type not in (FLOAT16, FLOAT32)]
    if quantised:
        with _float16_gguf(checkpoint, out, fingerprint, progress) as source:
            for recipe in quantised:
                _make_quantised_gguf(source, recipe, out, progress)
    return [Artefact(r, r.path_in(out), kept=r not in missing) for r in wanted]


def _is_there(recipe: Recipe, out: Path, fingerprint: str) -> bool:
    path = recipe.path_in(out)
    if not path.exists():
        return False
    found = read_fingerprint(path)
    if found != fingerprint:
        what = "was made from another checkpoint" if found else "is no whole artefact of edge"
        raise EdgeError(
            f"{path} {what}; replace it with 'edge convert MODEL --to {recipe.name} --force', "
            f"or choose another --out."
        )
    return True


def _make_mlx(checkpoint: Checkpoint, recipe: Recipe, out: Path, progress: Progress) -> None:
    with appears_whole(recipe.path_in(out)) as partial:
        write_mlx(checkpoint, recipe, partial, lambda done: progress(recipe.name, done))


def _make_float_gguf(checkpoint: Checkpoint, recipe: Recipe, out: Path, progress: Progress) -> None:
    with appears_whole(recipe.path_in(out)) as partial:
        assert recipe.file_type is not None  # every GGUF recipe has one
        write_gguf(checkpoint, recipe.file_type, partial, lambda d: progress(recipe.name, d))


@contextmanager
def _float16_gguf(
    checkpoint: Checkpoint, out: Path, fingerprint: str, progress: Progress
) -> Iterator[Path]:
    """The f16 artefact if it is there, else a temporary one."""
    f16 = RECIPES["gguf-f16"]
    path = f16.path_in(out)
    if path.exists() and read_fingerprint(path) == fingerprint:
        yield path
        return
    temporary = out / f".{path.name}.quantise"
    with appears_whole(temporary) as partial:
        write_gguf(checkpoint, FLOAT16, partial, lambda done: progress(f16.name, done))
    try:
        yield temporary
    finally:
        remove(temporary)


def _make_quantised_gguf(source: Path, recipe: Recipe, out: Path, progress: Progress) -> None:
    assert recipe.file_type is not None  # every GGUF recipe has one
    with appears_whole(recipe.path_in(out)) as partial:
        quantise(source, partial, recipe.file_type, lambda done: progress(recipe.name, done))

"""From one checkpoint to its artefacts: the source is read once, whatever is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.convert.artefacts.gguf import check_expressible
from edge.convert.artefacts.manifest import read_manifest
from edge.convert.artefacts.recipes import Recipe
from edge.convert.checkpoint import Checkpoint
from edge.convert.conversion import Conversion, Progress
from edge.convert.output_folder import lock_folder
from edge.convert.targets import Options, Target, targets
from edge.errors import EdgeError

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Artefact:
    """A finished artefact; `kept` if it was there already; what it lost, in sentences."""

    recipe: Recipe
    path: Path
    kept: bool
    notes: tuple[str, ...] = ()


def convert(
    checkpoint: Checkpoint,
    recipes: Sequence[Recipe],
    out: Path,
    progress: Progress,
    options: Options | None = None,
    notice: Notice = lambda _: None,
) -> list[Artefact]:
    """Make what is missing.

    Args:
        checkpoint: what to convert.
        recipes: what to make of it.
        out: the folder that holds the artefacts.
        progress: told how far each one is.
        options: what the user chose beside.
        notice: told what the user should know meanwhile.

    Raises:
        EdgeError: an artefact of another checkpoint is in the way, the disk is too small, a
            recipe cannot be made of this checkpoint, or writing failed.
    """
    options = options or Options()
    wanted = targets(checkpoint, recipes, out, options)
    if not all(target.recipe.is_mlx for target in wanted):
        check_expressible(checkpoint)
    _check_apart(wanted, checkpoint)
    with lock_folder(out, notice):
        missing = [t for t in wanted if options.force or not _is_there(t, checkpoint)]
        if missing:
            Conversion(checkpoint, missing, out, progress, options).run()
    return [_finished(t, kept=t not in missing) for t in wanted]


def _check_apart(wanted: Sequence[Target], checkpoint: Checkpoint) -> None:
    """An artefact must not take the place of what it is made of, however forced."""
    source = checkpoint.source.path
    for target in wanted:
        if source is not None and target.path.exists() and target.path.samefile(source):
            raise EdgeError(f"{target.path} is the source itself; choose another --out.")


def _is_there(target: Target, checkpoint: Checkpoint) -> bool:
    if not target.path.exists():
        return False
    found = read_manifest(target.path)
    if found is None:
        what = "is no whole artefact of edge"
    elif found.fingerprint != checkpoint.fingerprint:
        what = "was made from another checkpoint"
    elif target.chosen and (found.recipe, found.exact) != (target.record(), target.exact):
        what = "was made with other options"
    else:
        return True
    raise EdgeError(
        f"{target.path} {what}; replace it with 'edge convert MODEL --to {target.recipe.name} "
        f"--force', or choose another --out."
    )


def _finished(target: Target, kept: bool) -> Artefact:
    manifest = read_manifest(target.path)
    return Artefact(target.recipe, target.path, kept, manifest.notes if manifest else ())

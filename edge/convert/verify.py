"""Is a finished artefact what its manifest says, and does it fit its source?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.convert.artefacts.manifest import (
    MLX_FILE,
    Manifest,
    file_sha256,
    gguf_sha256,
    read_manifest,
)
from edge.convert.artefacts.recipes import RECIPES, rounding_bound
from edge.convert.checkpoint import Checkpoint, Corrections, open_checkpoint
from edge.convert.compare import TensorError, open_artefact, same_values, tensor_error
from edge.convert.sources.find import DEMO, HUB_ID
from edge.convert.sources.hub import cached
from edge.convert.sources.synthetic import PREFIX
from edge.convert.sources.weights import Opened, Shape
from edge.errors import EdgeError
from edge.model.tensors import check_shapes, expected_shapes

WORST = 5
# Twice what rounding to a float type can do to a number that is not too small for it.
FLOAT_ERRORS = {"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}
# float16's step near zero: tensors of tiny numbers are off by up to half of it.
F16_STEP = 2.0**-24
# What macOS puts into every folder that the Finder shows.
FINDERS = ".DS_Store"


def find_origin(artefact: Path, model: str | None = None) -> Checkpoint | None:
    """The checkpoint an artefact was made of, with the same corrections.

    Args:
        artefact: finished.
        model: where its source is. If None, only what is here without asking the network is
            found; local directories are not, as a manifest holds their names only.

    Raises:
        EdgeError: the artefact has no manifest, or the source named is none.
    """
    manifest = _manifest_of(artefact)
    corrections = _corrections(manifest)
    if model is not None:
        return open_checkpoint(model, corrections=corrections)
    try:
        found = _implied_origin(manifest, corrections)
    except EdgeError:  # a cache that is incomplete, a shape of another release
        return None
    # A directory may be called "demo" as well.
    return found if found and found.fingerprint == manifest.fingerprint else None


def _implied_origin(manifest: Manifest, corrections: Corrections) -> Checkpoint | None:
    origin = manifest.source
    if origin == DEMO or origin.startswith(PREFIX):
        return open_checkpoint(origin, corrections=corrections)
    if HUB_ID.fullmatch(origin) and (path := cached(origin, manifest.revision)):
        return open_checkpoint(str(path), corrections=corrections)
    return None


def _corrections(manifest: Manifest) -> Corrections:
    """What was set, as far as it can be used."""
    layers, theta, context = (
        manifest.corrections.get(key) for key in ("layers", "rope_theta", "context")
    )
    return Corrections(
        layers=layers if type(layers) is int else None,
        rope_theta=float(theta) if isinstance(theta, int | float) else None,
        context=context if type(context) is int else None,
    )


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        manifest: the artefact's own.
        hashed_files: how many files were hashed.
        compared_tensors: how many were compared with the source; 0 if it is not there.
        worst: the largest relative errors by tensor, largest first.
        problems: sentences, empty if all is well.
        remarks: what could not be checked, and why.
    """

    manifest: Manifest
    hashed_files: int
    compared_tensors: int
    worst: tuple[TensorError, ...]
    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def verify(
    artefact: Path, checkpoint: Checkpoint | None, progress: Callable[[float], None]
) -> Verification:
    """Hash every file, read every tensor's place, compare rows with the source.

    Args:
        artefact: a directory or a GGUF file made by edge.
        checkpoint: what it was made of, if that is there.
        progress: told the finished fraction of the comparison, 0 to 1.

    Raises:
        EdgeError: it has no manifest that can be read, so that nothing can be said.
    """
    manifest = _manifest_of(artefact)
    problems = _changed_files(artefact, manifest)
    hashed = len(manifest.output_sha256)
    remarks: list[str] = []
    errors: list[TensorError] = []
    try:
        opened = open_artefact(artefact)
        check_shapes(
            opened.config.matching(opened.weights.shapes), opened.weights.shapes, str(artefact)
        )
    except EdgeError as error:
        return Verification(manifest, hashed, 0, (), (*problems, str(error)), ())
    if checkpoint is None:
        remarks.append("its source is not here, so no tensor was compared with it.")
    elif checkpoint.fingerprint != manifest.fingerprint:
        problems.append(
            f"{artefact} was not made from {checkpoint.source.origin} as it is now; "
            f"name its own source ({manifest.source}), or convert again."
        )
    elif manifest.recipe.get("learned") == "awq":
        remarks.append("AWQ moves scales between tensors, so no single one can be compared.")
    else:
        found, errors = _compare(opened, manifest, checkpoint, progress)
        problems += found
    worst = sorted(errors, key=lambda error: error.relative, reverse=True)[:WORST]
    return Verification(
        manifest=manifest,
        hashed_files=hashed,
        compared_tensors=len(errors),
        worst=tuple(worst),
        problems=tuple(problems),
        remarks=tuple(remarks),
    )


def _manifest_of(artefact: Path) -> Manifest:
    if not artefact.exists():
        raise EdgeError(f"{artefact} is missing; check the path.")
    manifest = read_manifest(artefact)
    if manifest is None:
        raise EdgeError(
            f"{artefact} has no manifest of edge that can be read: it is damaged or was made by "
            f"another program, so nothing can be verified; convert the model again."
        )
    return manifest


def _changed_files(artefact: Path, manifest: Manifest) -> list[str]:
    """Sentences on files that are missing, other than they were, or new."""
    problems = []
    expected = manifest.output_sha256
    if not artefact.is_dir():
        if gguf_sha256(artefact) != next(iter(expected.values()), None):
            problems.append(f"{artefact} has changed since it was made; convert the model again.")
        return problems
    for name, digest in expected.items():
        path = artefact / name
        if not path.is_file():
            problems.append(f"{path} is missing; convert the model again.")
        elif file_sha256(path) != digest:
            problems.append(f"{path} has changed since it was made; convert the model again.")
    known = {*expected, MLX_FILE, FINDERS}
    strangers = sorted(p.name for p in artefact.iterdir() if p.name not in known)
    problems += [f"{artefact / name} is not part of the artefact; remove it." for name in strangers]
    return problems


def _compare(
    opened: Opened, manifest: Manifest, checkpoint: Checkpoint, progress: Callable[[float], None]
) -> tuple[list[str], list[TensorError]]:
    problems, errors = [], []
    shapes = expected_shapes(checkpoint.config)
    for done, (name, shape) in enumerate(shapes.items(), 1):
        if manifest.exact and checkpoint.weights.packing(name):
            same = same_values(name, opened.weights, checkpoint)
            error = TensorError(name, 0.0, 0.0)
            problem = None if same else f"tensor {name} is not the source's own any more."
        else:
            error = tensor_error(name, shape, opened.weights, checkpoint)
            problem = _problem(error, _limit(name, shape, opened, manifest))
        if problem:
            problems.append(problem)
        if not problem or (error.relative and math.isfinite(error.relative)):
            errors.append(error)
        progress(done / len(shapes))
    return problems, errors


def _problem(error: TensorError, limit: float) -> str | None:
    if not math.isfinite(error.relative):
        return f"tensor {error.name} holds values that are not finite; convert again."
    if error.relative <= limit or error.largest <= F16_STEP:
        return None
    return (
        f"tensor {error.name} differs from the source by {error.relative:.2g} of its size, and "
        f"rounding can account for {limit:.2g}; convert again."
    )


def _limit(name: str, shape: Shape, opened: Opened, manifest: Manifest) -> float:
    """The largest relative error that is no other tensor's."""
    recipe = RECIPES.get(manifest.artefact)
    if recipe is None or (manifest.exact and not recipe.is_mlx):
        return FLOAT_ERRORS["F32"]  # somebody's own tensors, copied
    if len(shape) == 1 and not recipe.is_mlx:
        return FLOAT_ERRORS["F32"]  # llama.cpp's vectors always are
    # Learning moves norms and biases as well.
    as_it_was = recipe.is_mlx and not manifest.recipe.get("learned")
    if recipe.is_float or manifest.exact or (as_it_was and not opened.weights.packing(name)):
        return FLOAT_ERRORS[recipe.dtype]
    return rounding_bound(recipe.precision)

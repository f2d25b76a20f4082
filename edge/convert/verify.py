"""Verification of an artefact against its manifest and its source."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.convert.artefacts.content import contradiction, named_recipe
from edge.convert.artefacts.manifest import (
    MLX_FILE,
    Manifest,
    file_sha256,
    gguf_sha256,
    read_manifest,
)
from edge.convert.artefacts.recipes import RECIPES, rounding_bound
from edge.convert.checkpoint import Checkpoint, open_checkpoint, open_path
from edge.convert.sources.directory import SMALL_FILES
from edge.convert.sources.names import DEMO, HUB_ID, SMOLLM2, SYNTHETIC
from edge.convert.sources.weights import Opened, Shape, Weights
from edge.errors import EdgeError
from edge.formats.files import MAX_BYTES, open_file, read_small_file, visible
from edge.formats.gguf import read_gguf
from edge.formats.safetensors import INDEX, read_header
from edge.model.tensors import check_shapes, expected_shapes

WORST = 5
# Twice the relative error of rounding a normal number.
FLOAT_ERRORS = {"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}
F16_STEP = 2.0**-24  # near zero; rounding is off by up to half of it
# Rows compared in each tensor. Quantisation errors hardly differ between the rows of a matrix, and
# reading all would take minutes.
PLACES = 8
ROWS_PER_PLACE = 16


@dataclass(frozen=True)
class TensorError:
    """A tensor's error over the rows compared."""

    name: str
    relative: float  # root mean square of the difference over that of the weights
    largest: float  # absolute difference


@dataclass(frozen=True)
class Verification:
    """Problems of an artefact, and what was compared."""

    manifest: Manifest
    hashed_files: int
    compared_tensors: int  # 0 without the source
    worst: tuple[TensorError, ...]  # largest relative error first
    problems: tuple[str, ...]
    notes: tuple[str, ...]  # what could not be checked, and why


def verify(
    artefact: Path, checkpoint: Checkpoint | None, progress: Callable[[float], None]
) -> Verification:
    """Hash every file, check every tensor's shape, compare rows with the checkpoint if given.

    An EdgeError if the artefact has no valid manifest.
    """
    manifest = _manifest_of(artefact)
    problems = _changed_files(artefact, manifest)
    notes: list[str] = []
    errors: list[TensorError] = []
    try:
        opened = open_path(artefact)
        config = opened.config.matching(opened.weights.shapes)
        check_shapes(config, opened.weights.shapes, str(artefact))
        recipe = named_recipe(artefact) or RECIPES.get(manifest.artefact)
        if recipe and (reason := contradiction(artefact, recipe, manifest)):
            problems.append(f"{reason}; convert the model again.")
    except EdgeError as error:
        problems.append(str(error))
    else:
        if checkpoint is None:
            notes.append("its source is not available, so no tensor was compared with it.")
        elif checkpoint.fingerprint != manifest.fingerprint:
            problems.append(
                f"{artefact} was not made from {checkpoint.source.origin} as it is now; "
                f"name its own source ({manifest.source}), or convert again."
            )
        elif changed := _changed_source(checkpoint, manifest):
            problems.append(
                f"{changed} of {checkpoint.source.origin} has changed since {artefact} was made; "
                f"convert again."
            )
        elif manifest.recipe.get("learned") == "awq":  # by releases up to 0.9
            notes.append("AWQ moves scales between tensors, so no single one can be compared.")
        else:
            found, errors = _compare(opened, manifest, checkpoint, progress)
            problems += found
    worst = tuple(sorted(errors, key=lambda error: error.relative, reverse=True)[:WORST])
    hashed, compared = len(manifest.output_sha256), len(errors)
    return Verification(manifest, hashed, compared, worst, tuple(problems), tuple(notes))


def find_origin(artefact: Path, model: str | None = None) -> Checkpoint | None:
    """The checkpoint an artefact was made from, with the same corrections.

    Without `model`, only the demo, synthetic models and models in the hub's cache are found: a
    manifest has no paths.

    An EdgeError if the artefact has no manifest, or `model` is not a checkpoint.
    """
    manifest = _manifest_of(artefact)
    if model is not None:
        return open_checkpoint(model, corrections=manifest.corrections)
    origin = manifest.source
    if HUB_ID.fullmatch(origin):
        from edge.convert.sources.hub import cached  # here, as it takes a second to import

        origin = str(cached(origin, manifest.revision) or "")
    elif origin not in (DEMO, SMOLLM2) and not origin.startswith(SYNTHETIC):
        return None
    try:
        found = open_checkpoint(origin, corrections=manifest.corrections)
    except EdgeError:  # not in the cache, or incomplete; a shape of another release
        return None
    # A directory may be called "demo" as well.
    return found if found.fingerprint == manifest.fingerprint else None


def _manifest_of(artefact: Path) -> Manifest:
    file = artefact / MLX_FILE
    if file.exists() or not artefact.is_dir():
        with open_file(file if artefact.is_dir() else artefact):
            pass  # its error says why it cannot be read
    manifest = read_manifest(artefact)
    if manifest is None:
        raise EdgeError(
            f"{artefact} has no manifest of edge: it is damaged or was made by another program; "
            f"convert the model again."
        )
    return manifest


def hash_sources(
    checkpoint: Checkpoint, stopped: Callable[[], bool] = lambda: False
) -> dict[str, str]:
    """SHA-256 of every file that was read, by name."""
    path = checkpoint.source.path
    small = [path / name for name in (*SMALL_FILES, INDEX)] if path else []
    files = [*filter(Path.is_file, small), *checkpoint.weights.files]
    return {file.name: file_sha256(file, stopped) for file in files}


def _changed_source(checkpoint: Checkpoint, manifest: Manifest) -> str | None:
    """Name of a file of the source that is not as it was."""
    found = hash_sources(checkpoint)
    recorded = manifest.source_sha256.items()
    return next((name for name, digest in recorded if found.get(name) != digest), None)


def _changed_files(artefact: Path, manifest: Manifest) -> list[str]:
    """Sentences on files that are missing, changed or new."""
    expected = manifest.output_sha256
    if not artefact.is_dir():
        return _changed(artefact, next(iter(expected.values()), ""), gguf_sha256)
    problems = []
    for name, digest in expected.items():
        problems += _changed(artefact / name, digest, file_sha256)
    others = [path for path in visible(artefact) if path.name not in {*expected, MLX_FILE}]
    return problems + [f"{path} is not part of the artefact; remove it." for path in others]


def _changed(path: Path, digest: str, sha256: Callable[[Path], str]) -> list[str]:
    if not path.exists():
        return [f"{path} is missing; convert the model again."]
    try:
        with open_file(path):
            pass
    except EdgeError as error:
        return [str(error)]
    with suppress(EdgeError):
        if not _is_too_long(path) and sha256(path) == digest:
            return []
    return [f"{path} has changed since it was made; convert the model again."]


def _is_too_long(path: Path) -> bool:
    """True for a file that would take hours to read to its end; an EdgeError if damaged."""
    if path.suffix == ".safetensors":
        read_header(path)  # checks the size
    elif path.suffix == ".gguf":
        end = max(t.begin + t.data_bytes for t in read_gguf(path).tensors)
        return path.stat().st_size > end + MAX_BYTES
    else:
        read_small_file(path)
    return False


def _compare(
    opened: Opened, manifest: Manifest, checkpoint: Checkpoint, progress: Callable[[float], None]
) -> tuple[list[str], list[TensorError]]:
    """Problems, and the errors of the tensors that could be compared."""
    problems, errors = [], []
    shapes = expected_shapes(checkpoint.config)
    for done, (name, shape) in enumerate(shapes.items(), 1):
        if manifest.exact and checkpoint.weights.packing(name):
            error = TensorError(name, 0.0, 0.0)
            same = _same_values(name, opened.weights, checkpoint)
            problem = None if same else f"tensor {name} differs from the source; convert again."
        else:
            error = tensor_error(name, shape, opened.weights, checkpoint)
            problem = _problem(error, _bound(name, shape, opened, manifest))
        if problem:
            problems.append(problem)
        if not problem or (error.relative and math.isfinite(error.relative)):
            errors.append(error)
        progress(done / len(shapes))
    return problems, errors


def _problem(error: TensorError, bound: float) -> str | None:
    if not math.isfinite(error.relative):
        return f"tensor {error.name} holds values that are not finite; convert again."
    if error.relative <= bound or error.largest <= F16_STEP:
        return None
    return (
        f"tensor {error.name} differs from the source by {error.relative:.2g} of its size, and "
        f"rounding can account for {bound:.2g}; convert again."
    )


def _bound(name: str, shape: Shape, opened: Opened, manifest: Manifest) -> float:
    """The largest relative error that rounding explains."""
    recipe = RECIPES.get(manifest.artefact)
    if recipe is None or (not recipe.is_mlx and (manifest.exact or len(shape) == 1)):
        return FLOAT_ERRORS["F32"]  # copied, or a vector, which llama.cpp keeps in float32
    # GPTQ changes norms and biases too.
    learned = not recipe.is_mlx or manifest.recipe.get("learned")
    kept = manifest.exact or not (learned or opened.weights.packing(name))
    if kept or recipe.is_float:
        return FLOAT_ERRORS[recipe.dtype]
    return rounding_bound(recipe.precision)


def tensor_errors(weights: Weights, checkpoint: Checkpoint) -> list[TensorError]:
    """Every tensor's error against the checkpoint's, in file order."""
    shapes = expected_shapes(checkpoint.config)
    return [tensor_error(*tensor, weights, checkpoint) for tensor in shapes.items()]


def tensor_error(name: str, shape: Shape, weights: Weights, checkpoint: Checkpoint) -> TensorError:
    """One tensor's error; NaN or infinite if a value is."""
    pairs = [
        (checkpoint.weights.read(name, *rows), weights.read(name, *rows))
        for rows in _sampled(shape[0])
    ]
    with np.errstate(invalid="ignore", over="ignore"):
        original, stored = (
            np.concatenate(part).astype(np.float64) for part in zip(*pairs, strict=True)
        )
        difference = stored - original
        scale = float(np.sqrt(np.mean(np.square(original))))
        error = float(np.sqrt(np.mean(np.square(difference))))
        relative = error / scale if scale else float(error > 0)
        return TensorError(name, relative, float(np.max(np.abs(difference))))


def _sampled(rows: int) -> list[tuple[int, int]]:
    """Disjoint ranges of rows that include the first and the last row."""
    if rows <= PLACES * ROWS_PER_PLACE:
        return [(0, rows)]
    starts = [(rows - ROWS_PER_PLACE) * i // (PLACES - 1) for i in range(PLACES)]
    return [(start, start + ROWS_PER_PLACE) for start in starts]


def _same_values(name: str, weights: Weights, checkpoint: Checkpoint) -> bool:
    """True if a quantised matrix is bit for bit the source's."""
    if weights.packing(name) != checkpoint.weights.packing(name):
        return False
    ours, theirs = weights.read_packed(name), checkpoint.weights.read_packed(name)
    parts = ("codes", "scales", "biases", "input_order")  # no order where the packing has none
    return all(np.array_equal(getattr(ours, part), getattr(theirs, part)) for part in parts)


def describe_loss(path: Path, checkpoint: Checkpoint) -> str:
    """A sentence on the error of rounding an already quantised source again."""
    errors = tensor_errors(open_path(path).weights, checkpoint)
    worst = max(errors, key=lambda error: error.relative)
    typical = float(np.median([error.relative for error in errors]))
    return (
        f"the source is quantised itself and was rounded again: relative error "
        f"{typical:.2g} in the median tensor, {worst.relative:.2g} in the worst ({worst.name})."
    )

"""One call of the converter: its options, a target per artefact, and their sizes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.convert.artefacts.mlx import source_packing
from edge.convert.artefacts.recipes import GPTQ, GPTQ_BITS, RECIPES, Recipe
from edge.convert.artefacts.sizes import planned_bytes
from edge.convert.checkpoint import Checkpoint
from edge.errors import EdgeError


@dataclass(frozen=True)
class Options:
    """The user's choices beside the artefacts' names."""

    force: bool = False  # replace artefacts that are there
    group_size: int | None = None  # of MLX's affine quantisation, in place of the recipe's
    requantise: bool = False  # round a quantised source again rather than keep its values
    learned: bool = False  # learn the quantisation of plain MLX recipes from a text, by GPTQ
    calibration: Path | None = None  # that text; by default the package's own source code
    imatrix: Path | None = None  # llama.cpp's importance matrix for GGUF artefacts


@dataclass(frozen=True)
class Target:
    """One artefact to make."""

    recipe: Recipe  # with the user's group size
    path: Path
    exact: bool = False  # keep the source's own quantised values
    learned: bool = False  # by GPTQ, from a text
    imatrix: Path | None = None
    chosen: bool = False  # by the user's options: one made with others is not what was asked for

    @property
    def is_streamed(self) -> bool:
        """Written from the checkpoint's tensors as they pass."""
        return not self.learned and (self.recipe.is_mlx or self.recipe.is_float)

    def record(self) -> dict[str, Any]:
        """How it is made, for the manifest."""
        keys = ("bits", "group_size", "high_bits", "dtype", "file_type")
        learned = GPTQ if self.learned else None
        imatrix = self.imatrix.name if self.imatrix else None
        recorded = {key: getattr(self.recipe, key) for key in keys}
        return {**recorded, "learned": learned, "imatrix": imatrix}


def targets(
    checkpoint: Checkpoint, recipes: Sequence[Recipe], out: Path, options: Options
) -> list[Target]:
    """One target per recipe, in order; an EdgeError for an option that none of them can have."""
    packing = source_packing(checkpoint)
    made = [_target(recipe, out, options, packing) for recipe in dict.fromkeys(recipes)]
    _check_options(made, options, checkpoint)
    return made


def _target(recipe: Recipe, out: Path, options: Options, source: tuple[int, int] | None) -> Target:
    """One target; `source` is the bits and group size that can be kept."""
    path = recipe.path_in(out)
    if not recipe.is_mlx:
        imatrix = None if recipe.is_float else options.imatrix
        return Target(recipe, path, imatrix=imatrix, chosen=imatrix is not None)
    if recipe.bits is None:
        return Target(recipe, path)
    plain = recipe.high_bits is None
    bits, group_size = source or (None, None)
    keeps = not (options.requantise or options.learned)
    exact = plain and keeps and recipe.bits == bits and options.group_size in (None, group_size)
    if wanted := group_size if exact else options.group_size:
        recipe = replace(recipe, group_size=wanted)
    learned = options.learned and plain
    chosen = bool(options.group_size or learned or options.requantise)
    return Target(recipe, path, exact=exact, learned=learned, chosen=chosen)


def _check_options(made: Sequence[Target], options: Options, checkpoint: Checkpoint) -> None:
    if options.calibration is not None and not options.learned:
        raise EdgeError(f"--calibration needs --calibrate {GPTQ}; add it.")
    if options.requantise and not checkpoint.weights.quantised:
        raise EdgeError(
            f"--requantise is for quantised sources, and {checkpoint.source.name} is none; "
            f"leave it out."
        )
    for bits in (target.recipe.bits for target in made if target.learned):
        if bits not in GPTQ_BITS:
            choices = ", ".join(map(str, GPTQ_BITS))
            raise EdgeError(f"{GPTQ} cannot make {bits} bits; choose from {choices}.")
    for flag, given, used in (
        ("--calibrate", options.learned, any(t.learned for t in made)),
        ("--imatrix", options.imatrix, any(t.imatrix for t in made)),
        ("--group-size", options.group_size, any(t.recipe.group_size for t in made)),
        ("--requantise", options.requantise, any(t.recipe.bits for t in made)),
    ):
        if given and not used:
            raise EdgeError(
                f"{flag} bears on none of the artefacts asked for; leave it out, or ask for one "
                f"such as {'gguf-q4_k_m' if flag == '--imatrix' else 'mlx-int4'}."
            )


@dataclass(frozen=True)
class Listed:
    """One artefact that could be made."""

    artefact: str
    bits_per_weight: float
    weight_bytes: int
    exact: bool  # keeps the source's own quantised values
    estimated: bool  # right to 2 %, as llama.cpp decides the types; others are right to the byte


def list_artefacts(checkpoint: Checkpoint, group_size: int | None = None) -> list[Listed]:
    """Every artefact that this checkpoint can become, with a group size for MLX's affine ones."""
    stablelm = checkpoint.config.model_type == "stablelm"
    recipes = [recipe for recipe in RECIPES.values() if recipe.is_mlx or stablelm]
    listed = []
    for target in targets(checkpoint, recipes, Path(), Options(group_size=group_size)):
        recipe, size = target.recipe, planned_bytes(checkpoint, target.recipe, target.exact)
        bits = 8 * size / checkpoint.parameters
        estimated = not (recipe.is_mlx or recipe.is_float)
        listed.append(Listed(recipe.name, bits, size, target.exact, estimated))
    return listed

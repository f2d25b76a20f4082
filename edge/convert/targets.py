"""What a call of the converter is to make: options, and one target per artefact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edge.convert.artefacts.layout import source_packing
from edge.convert.artefacts.recipes import GPTQ, Recipe
from edge.convert.checkpoint import Checkpoint
from edge.errors import EdgeError


@dataclass(frozen=True)
class Options:
    """What the user chose beside the artefacts' names.

    Attributes:
        force: replace artefacts that are there.
        group_size: of MLX's affine quantisation, in place of the recipe's.
        requantise: round a quantised source again rather than keep its values.
        learned: learn the quantisation of plain MLX recipes from a text, by GPTQ.
        calibration: that text; by default the package's own source code.
        imatrix: llama.cpp's importance matrix for GGUF artefacts.
    """

    force: bool = False
    group_size: int | None = None
    requantise: bool = False
    learned: bool = False
    calibration: Path | None = None
    imatrix: Path | None = None


@dataclass(frozen=True)
class Target:
    """One artefact to make.

    Attributes:
        recipe: with the user's group size.
        path: where it goes.
        exact: keep the source's own quantised values.
        learned: by GPTQ, from a text.
        imatrix: the importance matrix, if any.
        chosen: options of the user's own bear on it, so that an artefact made with others
            is not what was asked for.
    """

    recipe: Recipe
    path: Path
    exact: bool = False
    learned: bool = False
    imatrix: Path | None = None
    chosen: bool = False

    @property
    def is_streamed(self) -> bool:
        """Written from the checkpoint's tensors as they pass."""
        return not self.learned and (self.recipe.is_mlx or self.recipe.is_float)

    def record(self) -> dict[str, Any]:
        """How it is made, for the manifest."""
        fields = asdict(self.recipe)
        shown = {key: fields[key] for key in ("bits", "group_size", "high_bits", "dtype")}
        shown["file_type"] = self.recipe.file_type
        shown["learned"] = GPTQ if self.learned else None
        shown["imatrix"] = self.imatrix.name if self.imatrix else None
        return shown


def targets(
    checkpoint: Checkpoint, recipes: Sequence[Recipe], out: Path, options: Options
) -> list[Target]:
    """One target per recipe, in order, each once.

    Raises:
        EdgeError: an option that bears on none of them, or on one that cannot have it.
    """
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
    unused = [
        flag
        for flag, given, used in (
            ("--calibrate", options.learned, any(t.learned for t in made)),
            ("--imatrix", options.imatrix, any(t.imatrix for t in made)),
            ("--group-size", options.group_size, any(t.recipe.group_size for t in made)),
            ("--requantise", options.requantise, any(t.recipe.bits for t in made)),
        )
        if given and not used
    ]
    if unused:
        raise EdgeError(
            f"{unused[0]} bears on none of the artefacts asked for; leave it out, or ask for one "
            f"such as {'gguf-q4_k_m' if unused[0] == '--imatrix' else 'mlx-int4'}."
        )

"""What can be made of a checkpoint, and how large each artefact would be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.convert.artefacts.recipes import RECIPES, Recipe
from edge.convert.artefacts.sizes import planned_bytes
from edge.convert.checkpoint import Checkpoint
from edge.convert.targets import Options, targets


@dataclass(frozen=True)
class Listed:
    """One artefact that could be made.

    `exact` if it keeps the source's own quantised values. Sizes are of the weights, to the byte
    unless `estimated`.
    """

    recipe: Recipe
    exact: bool
    weight_bytes: int
    bits_per_weight: float

    @property
    def estimated(self) -> bool:
        """llama.cpp decides the types of the tensors."""
        return not self.recipe.is_mlx and not self.recipe.is_float


def list_artefacts(checkpoint: Checkpoint, group_size: int | None = None) -> list[Listed]:
    """Every artefact that this checkpoint can become.

    Args:
        checkpoint: what would be converted.
        group_size: of MLX's affine quantisation, in place of the recipes'.
    """
    recipes = [
        r for r in RECIPES.values() if r.is_mlx or checkpoint.config.model_type == "stablelm"
    ]
    made = targets(checkpoint, recipes, Path(), Options(group_size=group_size))
    sizes = planned_bytes(checkpoint, [(target.recipe, target.exact) for target in made])
    return [
        Listed(target.recipe, target.exact, size, 8 * size / checkpoint.parameters)
        for target, size in zip(made, sizes, strict=True)
    ]

"""The artefacts that edge makes, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.errors import EdgeError


@dataclass(frozen=True)
class Recipe:
    """How one artefact differs from its checkpoint.

    `bits` and `group_size` are those of MLX's affine quantisation, None for float16.
    `file_type` is llama.cpp's `llama_ftype`, also written as general.file_type.
    """

    name: str
    framework: str
    precision: str
    bits: int | None = None
    group_size: int | None = None
    file_type: int | None = None

    @property
    def is_mlx(self) -> bool:
        """A directory for MLX, rather than a GGUF file."""
        return self.framework == "MLX"

    def path_in(self, out: Path) -> Path:
        """Where the artefact lies inside an output folder."""
        return out / (self.name if self.is_mlx else f"{self.name}.gguf")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("mlx-fp16", "MLX", "FP16"),
        Recipe("mlx-int8", "MLX", "INT8", bits=8, group_size=64),
        Recipe("mlx-int4", "MLX", "INT4", bits=4, group_size=64),
        Recipe("gguf-f32", "GGUF", "FP32", file_type=0),
        Recipe("gguf-f16", "GGUF", "FP16", file_type=1),
        Recipe("gguf-q8_0", "GGUF", "Q8_0", file_type=7),
        Recipe("gguf-q6_k", "GGUF", "Q6_K", file_type=18),
        Recipe("gguf-q5_k_m", "GGUF", "Q5_K_M", file_type=17),
        Recipe("gguf-q4_k_m", "GGUF", "Q4_K_M", file_type=15),
        Recipe("gguf-q4_0", "GGUF", "Q4_0", file_type=2),
    )
}
# The five rows of Table 11 in the Stable Code Technical Report.
TABLE_11 = ("mlx-fp16", "mlx-int4", "gguf-f16", "gguf-q5_k_m", "gguf-q6_k")


def find_recipe(name: str) -> Recipe:
    """Look an artefact's name up.

    Raises:
        EdgeError: there is no such artefact.
    """
    if name not in RECIPES:
        raise EdgeError(f"unknown artefact {name!r}; choose from {', '.join(RECIPES)}.")
    return RECIPES[name]

"""The artefacts that edge makes, and bounds of their rounding errors."""

import re
from dataclasses import dataclass
from pathlib import Path

from edge.errors import EdgeError

GROUP_SIZES = (32, 64, 128)
GPTQ = "gptq"  # value of `--calibrate` and in manifests
GPTQ_BITS = (2, 4, 8)  # divisors of 32, as mlx-lm's GPTQ packs codes into words
FLOAT_FILE_TYPES = {0: "F32", 1: "F16", 32: "BF16"}
# The fewest bits of a precision's matrices.
BITS = re.compile(r"^(?:INT|MIXED_|Q)(\d)")
FLOATS = ("FP32", "FP16", "BF16")


@dataclass(frozen=True)
class Recipe:
    """How an artefact stores its weights."""

    name: str  # framework-precision
    framework: str  # MLX or GGUF
    precision: str  # as tables print it
    dtype: str = "F16"  # safetensors' name, of weights that are not quantised
    bits: int | None = None  # of MLX's affine quantisation; a mixed recipe's low bits
    group_size: int | None = None  # number of weights that share a scale and a bias
    high_bits: int | None = None  # a mixed recipe's bits for the sensitive matrices
    file_type: int | None = None  # llama.cpp's `llama_ftype`, also written as general.file_type

    @property
    def is_mlx(self) -> bool:
        """True for an MLX directory, false for a GGUF file."""
        return self.framework == "MLX"

    @property
    def is_float(self) -> bool:
        return self.bits is None and (self.is_mlx or self.file_type in FLOAT_FILE_TYPES)

    def path_in(self, out: Path) -> Path:
        return out / (self.name if self.is_mlx else f"{self.name}.gguf")


def _mlx(name: str, dtype: str = "F16", bits: int | None = None, high: int | None = None) -> Recipe:
    group_size = 64 if bits else None
    return Recipe(f"mlx-{name}", "MLX", name.upper(), dtype, bits, group_size, high)


def _gguf(name: str, file_type: int) -> Recipe:
    precision = {"f32": "FP32", "f16": "FP16"}.get(name, name.upper())
    dtype = FLOAT_FILE_TYPES.get(file_type, "F16")
    return Recipe(f"gguf-{name}", "GGUF", precision, dtype, file_type=file_type)


GGUF_FILE_TYPES = {
    **{"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q6_k": 18, "q5_k_m": 17, "q5_k_s": 16},
    **{"q5_1": 9, "q5_0": 8, "q4_k_m": 15, "q4_1": 3, "q4_0": 2, "q3_k_m": 12, "q2_k": 10},
}
# From most to fewest bits, as `--list` prints them.
RECIPES = {
    recipe.name: recipe
    for recipe in (
        _mlx("fp16"),
        _mlx("bf16", "BF16"),
        *(_mlx(f"int{bits}", bits=bits) for bits in (8, 6, 5, 4, 3, 2)),
        # The low and high bits of mlx_lm.convert.QUANT_RECIPES.
        *(_mlx(f"mixed_{a}_{b}", bits=a, high=b) for a, b in ((4, 6), (3, 6), (3, 4), (2, 6))),
        *(_gguf(name, file_type) for name, file_type in GGUF_FILE_TYPES.items()),
    )
}
# A copy of a GGUF file with its missing metadata added.
MENDED = Recipe("gguf-mended", "GGUF", "MENDED")
# The five rows of Table 11 in the Stable Code Technical Report.
TABLE_11 = ("mlx-fp16", "mlx-int4", "gguf-f16", "gguf-q5_k_m", "gguf-q6_k")


def find_recipe(name: str) -> Recipe:
    """The recipe of an artefact's name; an EdgeError if it is unknown."""
    if name not in RECIPES:
        raise EdgeError(f"unknown artefact {name!r}; choose from {', '.join(RECIPES)}.")
    return RECIPES[name]


def rounding_bound(
    precision: str, factor: float = 8.0, largest: float = 0.9, floats: float = 0.01
) -> float:
    """The largest relative error that rounding to a precision explains: factor / 2^bits.

    The defaults are for a tensor: rounding normal weights to b bits has an error of about
    1.5 / 2^b, two unrelated tensors differ by 1.4. At most `largest`, also for a precision
    without bits; `floats` is for float types.
    """
    if precision in FLOATS:
        return floats
    bits = BITS.match(precision)
    return min(largest, factor / 2 ** int(bits[1])) if bits else largest

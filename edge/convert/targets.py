"""Targets of a conversion, and the sizes of artefacts on disk and of those to be made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from edge.convert.artefacts.gguf import gguf_plan
from edge.convert.artefacts.mlx import layout, source_packing
from edge.convert.artefacts.recipes import GPTQ, GPTQ_BITS, RECIPES, Recipe
from edge.convert.checkpoint import Checkpoint
from edge.errors import EdgeError
from edge.formats.files import read_json_object, visible
from edge.formats.gguf import part_paths, read_model
from edge.formats.safetensors import INDEX

# Bits of a weight outside the head, by precision. ggml's blocks of 32 or 256 weights hold scales
# beside the codes; where llama.cpp mixes types, it is the mean over a StableLM's matrices.
GGUF_BITS = {
    **{"Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K_S": 5.5, "Q5_1": 6.0, "Q5_0": 5.5, "Q4_1": 5.0},
    **{"Q4_0": 4.5, "Q5_K_M": 5.64, "Q4_K_M": 4.78},  # _M: half of attn_v and ffn_down in Q6_K
    "Q3_K_M": 3.82,  # attn_v, attn_output and ffn_down in Q4_K, the first few in Q5_K
    "Q2_K": 2.90,  # attn_v, attn_output and ffn_down in Q3_K
}
GGUF_HEAD_BITS = 6.5625  # Q6_K, unless the others have more
# K-quants have blocks of 256; what llama.cpp takes for rows that do not divide into them.
K_BLOCK = 256
GGUF_FALLBACK_BITS = {"Q6_K": 8.5, "Q5_K_M": 6.25, "Q5_K_S": 6.0, "Q4_K_M": 5.75}
GGUF_FALLBACK_BITS |= {"Q3_K_M": 4.85, "Q2_K": 4.6}


@dataclass(frozen=True)
class Options:
    """The user's options."""

    force: bool = False  # replace existing artefacts
    group_size: int | None = None  # of MLX's affine quantisation, instead of the recipe's
    requantise: bool = False  # round a quantised source again instead of keeping its values
    learned: bool = False  # GPTQ for MLX recipes that are not mixed
    calibration: Path | None = None  # text for GPTQ; by default the package's source code
    imatrix: Path | None = None  # llama.cpp's importance matrix for GGUF artefacts


@dataclass(frozen=True)
class Target:
    """One artefact to make."""

    recipe: Recipe  # with the user's group size
    path: Path
    exact: bool = False  # keep the source's own quantised values
    learned: bool = False  # by GPTQ
    imatrix: Path | None = None
    chosen: bool = False  # by the user's options: an existing artefact must have the same

    @property
    def is_streamed(self) -> bool:
        """True if written directly from the checkpoint's tensors."""
        return not self.learned and (self.recipe.is_mlx or self.recipe.is_float)

    def record(self) -> dict[str, Any]:
        keys = ("bits", "group_size", "high_bits", "dtype", "file_type")
        learned = GPTQ if self.learned else None
        imatrix = self.imatrix.name if self.imatrix else None
        recorded = {key: getattr(self.recipe, key) for key in keys}
        return {**recorded, "learned": learned, "imatrix": imatrix}


def targets(
    checkpoint: Checkpoint, recipes: Sequence[Recipe], out: Path, options: Options
) -> list[Target]:
    """One target per recipe, in order; an EdgeError for an option that applies to none."""
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
            f"--requantise is for quantised sources, and {checkpoint.source.name} is not one; "
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
                f"{flag} applies to none of the artefacts asked for; leave it out, or ask for one "
                f"such as {'gguf-q4_k_m' if flag == '--imatrix' else 'mlx-int4'}."
            )


@dataclass(frozen=True)
class Listed:
    """One artefact that can be made."""

    artefact: str
    bits_per_weight: float
    weight_bytes: int
    exact: bool  # keeps the source's own quantised values
    estimated: bool  # within 2 %, as llama.cpp chooses the types


def list_artefacts(checkpoint: Checkpoint, group_size: int | None = None) -> list[Listed]:
    """Every artefact of this checkpoint; `group_size` is for MLX's affine quantisation."""
    listed = []
    for target in targets(
        checkpoint, list(RECIPES.values()), Path(), Options(group_size=group_size)
    ):
        recipe, size = target.recipe, planned_bytes(checkpoint, target.recipe, target.exact)
        bits = 8 * size / checkpoint.parameters
        estimated = not (recipe.is_mlx or recipe.is_float)
        listed.append(Listed(recipe.name, bits, size, target.exact, estimated))
    return listed


def file_bytes(path: Path) -> int:
    """Bytes on disk of a file with the parts that it was split into, or of a directory's files."""
    files = visible(path) if path.is_dir() else part_paths(path)
    return sum(f.stat().st_size for f in files if f.is_file())


def tensor_bytes(path: Path) -> int:
    """Bytes of the weights without headers, tokenizer and config."""
    if path.is_dir():
        return int(read_json_object(path / INDEX)["metadata"]["total_size"])
    return sum(tensor.data_bytes for tensor in read_model(path).tensors)


def bits_per_weight(path: Path, parameters: int) -> float:
    """Bits that one weight takes on average, scales and biases included."""
    return 8 * tensor_bytes(path) / parameters


def planned_bytes(checkpoint: Checkpoint, recipe: Recipe, exact: bool = False) -> int:
    """Bytes of the weights of an artefact to be made.

    Exact but for quantised GGUF files: llama.cpp chooses each tensor's type, and the result is
    within 2 % for the published StableLMs and SmolLM2.
    """
    if recipe.is_mlx:
        tensors = layout(checkpoint, recipe, exact)
        return sum(planned.data_bytes for tensor in tensors for planned in tensor.planned())
    total = 0.0
    plan = gguf_plan(checkpoint.config, recipe.dtype)
    is_tied = "output.weight" not in {tensor.name for tensor in plan}
    head = "token_embd.weight" if is_tied else "output.weight"
    for tensor in plan:
        if recipe.is_float or tensor.dtype == "F32":  # vectors always are
            total += tensor.data_bytes
            continue
        bits, head_bits = GGUF_BITS[recipe.precision], GGUF_HEAD_BITS
        if tensor.shape[-1] % K_BLOCK:
            bits = GGUF_FALLBACK_BITS.get(recipe.precision, bits)
            head_bits = GGUF_FALLBACK_BITS["Q6_K"]
        if tensor.name == head:
            bits = max(bits, head_bits)
        total += prod(tensor.shape) * bits / 8
    return round(total)

"""Precision of stored tensors, and whether an artefact is what its name and manifest say."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.convert.artefacts.manifest import Manifest, read_manifest
from edge.convert.artefacts.recipes import RECIPES, Recipe
from edge.errors import EdgeError, printable
from edge.formats.files import read_json_object
from edge.formats.folder import inside
from edge.formats.safetensors import FLOATS, StoredTensor
from edge.model.memory import read_tensors

if TYPE_CHECKING:
    from edge.formats.gguf import GgufFile, GgufTensor

CODE_BITS = 32
# Of mlx-lm, for a module whose setting does not say.
DEFAULT_BITS, DEFAULT_GROUP_SIZE = 4, 64
FLOAT_PRECISIONS = {"F32": "FP32", "F16": "FP16"}
GUESSED = 1024  # from here on general.file_type is llama.cpp's guess
QUANTISED_KIND = re.compile(r"(?:I?Q|TQ|MXFP|NVFP)(\d)")
K_BLOCK = 256
# Bits of what llama.cpp takes instead of K-quants for rows that do not divide into their blocks.
FALLBACK_BITS = {2: 4, 3: 4, 4: 5, 5: 5, 6: 8}

Tensors = Mapping[str, StoredTensor]
Packings = Counter[tuple[int, int]]


def check_name(path: Path) -> None:
    """Raise EdgeError if a path has an artefact's name and is something else."""
    recipe = named_recipe(path)
    if recipe is not None and (reason := contradiction(path, recipe, read_manifest(path))):
        raise EdgeError(
            f"{reason}; rename it, or make it again with "
            f"'edge convert MODEL --to {recipe.name} --force'."
        )


def named_recipe(path: Path) -> Recipe | None:
    """The recipe whose name a path has, itself or after links."""
    names = {Path(os.path.abspath(path)).name, path.resolve().name}  # noqa: PTH100  # keeps links
    return next((r for r in RECIPES.values() if r.path_in(Path()).name in names), None)


def contradiction(path: Path, recipe: Recipe, manifest: Manifest | None) -> str | None:
    """Reason, without a full stop, why an artefact is not of a recipe; an EdgeError if damaged."""
    if manifest is not None and manifest.artefact != recipe.name:
        return f"{path} is not {recipe.name}: its manifest says {printable(manifest.artefact)}"
    if not recipe.is_mlx:
        from edge.formats.gguf import read_model  # here: numpy, which MLX artefacts do not need

        found = gguf_precision(read_model(path))
        return None if found == recipe.precision else _differs(path, recipe, found)
    quantisation, tensors = read_mlx(path)
    packed = packings(quantisation, tensors)
    found = mlx_precision(quantisation, tensors, packed)
    stated = manifest.recipe.get("group_size") if manifest is not None else None
    if manifest is not None and manifest.exact and packed:
        # The source's own matrices may have several numbers of bits; most have the name's.
        return (
            None if packed.most_common(1)[0][0][0] == recipe.bits else _differs(path, recipe, found)
        )
    if not packed and _divides_nothing(tensors, stated or recipe.group_size):
        return None
    if found != recipe.precision:
        return _differs(path, recipe, found)
    if stated and any(group_size != stated for _, group_size in packed):
        return f"{path} has not the groups of {stated} weights that its manifest states"
    return None


def _divides_nothing(tensors: Tensors, group_size: Any) -> bool:
    """True if no matrix can be quantised in groups of this size."""
    rows = [tensor.shape[-1] for tensor in tensors.values() if len(tensor.shape) > 1]
    return type(group_size) is int and all(length % group_size for length in rows)


def _differs(path: Path, recipe: Recipe, found: str) -> str:
    return f"{path} is not {recipe.name}: its tensors are {found}"


def read_mlx(path: Path) -> tuple[Mapping[str, Any], Tensors]:
    """config.json's "quantization", and the tensors of a directory's files by name."""
    config = read_json_object(inside(path, "config.json"))
    inner = config.get("text_config")  # of the language model in one for images or sound
    merged = {**config, **inner} if isinstance(inner, Mapping) else config
    quantisation = merged.get("quantization")
    return quantisation if isinstance(quantisation, Mapping) else {}, read_tensors(path)


def packings(quantisation: Mapping[str, Any], tensors: Tensors) -> Packings:
    """Numbers of quantised weights by bits and group size.

    An EdgeError if config.json does not fit the shapes.
    """
    found: Packings = Counter()
    for name, scales in tensors.items():
        stem, _, part = name.rpartition(".")
        codes = tensors.get(f"{stem}.weight")
        if part != "scales" or codes is None:
            continue
        own = quantisation.get(stem)
        setting = own if isinstance(own, Mapping) else quantisation
        bits = setting.get("bits", DEFAULT_BITS)
        group_size = setting.get("group_size", DEFAULT_GROUP_SIZE)
        weights = prod(scales.shape) * group_size if type(group_size) is int else 0
        if type(bits) is not int or bits * weights != CODE_BITS * prod(codes.shape):
            raise EdgeError(
                f"{codes.path}: tensor {codes.name} does not have the bits and group size that "
                f"config.json gives; convert or download it again."
            )
        found[bits, group_size] += weights
    return found


def mlx_precision(quantisation: Mapping[str, Any], tensors: Tensors, packed: Packings) -> str:
    """Precision of an MLX directory's tensors, as tables print it."""
    mode = quantisation.get("mode", "affine")
    if not packed:
        return _most_bytes((t.dtype, t.data_bytes) for t in tensors.values() if t.dtype in FLOATS)
    if mode != "affine":
        return printable(str(mode).upper())[:20]
    bits = sorted({bits for bits, _ in packed})
    return f"INT{bits[0]}" if len(bits) == 1 else "_".join(["MIXED", *map(str, bits)])


def gguf_precision(file: "GgufFile") -> str:
    """The name of general.file_type if the tensors agree with it, else the type of most bytes."""
    from gguf.constants import LlamaFileType  # here: the package takes half a second to load

    names = {int(kind): kind.name.partition("_")[2] for kind in LlamaFileType if kind < GUESSED}
    code = file.keys.get("general.file_type")
    name: str | None = names.get(code) if type(code) is int else None
    if name and _agrees(name, file.tensors):
        return FLOAT_PRECISIONS.get(name, name)
    return _most_bytes((tensor.kind, tensor.data_bytes) for tensor in file.tensors)


def _agrees(name: str, tensors: Iterable["GgufTensor"]) -> bool:
    """True if matrices have the types of which llama.cpp mixes a file of this name.

    Its mixes have more bits for some matrices, never fewer.
    """
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    quantised = [(int(m[1]), t) for t in matrices if (m := QUANTISED_KIND.match(t.kind))]
    wanted = QUANTISED_KIND.match(name)
    if wanted is None or not quantised:
        largest = _most_bytes((tensor.kind, tensor.data_bytes) for tensor in matrices)
        return largest == FLOAT_PRECISIONS.get(name, name)
    bits, fewest = int(wanted[1]), min(bits for bits, _ in quantised)
    fits_blocks = any(tensor.shape[-1] % K_BLOCK == 0 for _, tensor in quantised)
    return fewest == bits or (not fits_blocks and fewest == FALLBACK_BITS.get(bits))


def _most_bytes(sizes: Iterable[tuple[str, int]]) -> str:
    total: Counter[str] = Counter()
    for kind, size in sizes:
        total[kind] += size
    kind = total.most_common(1)[0][0] if total else "unknown"
    return FLOAT_PRECISIONS.get(kind, kind)

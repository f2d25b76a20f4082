"""How an MLX artefact stores each tensor, decided before anything is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

from edge.convert.artefacts.recipes import Recipe
from edge.convert.checkpoint import Checkpoint
from edge.convert.sources.weights import Packing, Shape
from edge.formats.safetensors_writer import Planned
from edge.model.tensors import ORDER_READERS, expected_shapes, order_of

CODE_BITS = 32
# Of the matrices that share an order of inputs, the one it is written after.
FIRST_READERS = tuple(f"{readers[0]}.weight" for readers in ORDER_READERS.values())


@dataclass(frozen=True)
class Form:
    """One tensor: a float type, or bits and group size; `packing` if the source has it so."""

    name: str
    shape: Shape
    dtype: str
    bits: int | None = None
    group_size: int | None = None
    packing: Packing | None = None

    @property
    def stem(self) -> str:
        """The module's path."""
        return self.name.removesuffix(".weight")

    def planned(self) -> list[Planned]:
        """What is written for it, in file order."""
        if self.bits is None or self.group_size is None:
            return [Planned(self.name, self.dtype, self.shape)]
        rows, columns = self.shape
        groups = (rows, columns // self.group_size)
        planned = [
            Planned(self.name, "U32", (rows, columns * self.bits // CODE_BITS)),
            Planned(f"{self.stem}.scales", self.dtype, groups),
            Planned(f"{self.stem}.biases", self.dtype, groups),
        ]
        if order := self.order_name():
            planned.append(Planned(order, "I32", (columns,)))
        return planned

    def order_name(self) -> str | None:
        """Where the order of its inputs goes, if this matrix is the one to bring it."""
        permuted = self.packing is not None and self.packing.permuted
        return order_of(self.stem) if permuted and self.name.endswith(FIRST_READERS) else None


def layout(checkpoint: Checkpoint, recipe: Recipe, exact: bool) -> list[Form]:
    """Every tensor's form, in file order.

    Args:
        checkpoint: what is converted.
        recipe: an MLX recipe.
        exact: keep the source's quantised matrices as they are, and the others in float.
    """
    shapes = expected_shapes(checkpoint.config)
    if exact:
        return [_kept(checkpoint, name, shape, recipe.dtype) for name, shape in shapes.items()]
    layers = checkpoint.config.num_hidden_layers
    return [_rounded(recipe, name, shape, layers) for name, shape in shapes.items()]


def source_packing(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Bits and group size of most of the quantised weights, if they can be kept exactly.

    None if the source is not quantised, or if keeping what can be kept would leave more than
    half of the quantised weights in float: that is not what an artefact's name promises.
    """
    kept: Counter[tuple[int, int]] = Counter()
    lost = 0
    for name, shape in expected_shapes(checkpoint.config).items():
        if packing := checkpoint.weights.packing(name):
            kept[packing.bits, packing.group_size] += prod(shape)
        elif name in checkpoint.weights.unpackable:
            lost += prod(shape)
    if not kept or kept.total() < lost:
        return None
    by_bits: Counter[int] = Counter()
    for (bits, _), count in kept.items():
        by_bits[bits] += count
    most = by_bits.most_common(1)[0][0]
    return max((key for key in kept if key[0] == most), key=kept.__getitem__)


def quantization_config(forms: list[Form]) -> dict[str, Any] | None:
    """config.json's "quantization" as mlx-lm reads it: one setting, and a path's own if it differs.

    mlx-lm takes a matrix without scales for unquantised whatever stands here.
    """
    settings = {f.stem: (f.group_size, f.bits) for f in forms if f.bits is not None}
    if not settings:
        return None
    group_size, bits = Counter(settings.values()).most_common(1)[0][0]
    own = {
        stem: {"group_size": s[0], "bits": s[1], "mode": "affine"}
        for stem, s in settings.items()
        if s != (group_size, bits)
    }
    return {"group_size": group_size, "bits": bits, "mode": "affine", **own}


def _kept(checkpoint: Checkpoint, name: str, shape: Shape, dtype: str) -> Form:
    packing = checkpoint.weights.packing(name)
    if packing is None:
        return Form(name, shape, dtype)
    return Form(name, shape, dtype, packing.bits, packing.group_size, packing)


def _rounded(recipe: Recipe, name: str, shape: Shape, layers: int) -> Form:
    """What mlx-lm does: every linear and the embedding whose rows divide into groups."""
    group_size = recipe.group_size
    if group_size is None or len(shape) != 2 or shape[1] % group_size:
        return Form(name, shape, recipe.dtype)
    bits = recipe.high_bits if _is_sensitive(name, layers) else recipe.bits
    return Form(name, shape, recipe.dtype, bits or recipe.bits, group_size)


def _is_sensitive(name: str, layers: int) -> bool:
    """The matrices that mlx-lm's mixed recipes give more bits.

    The head, and v_proj and down_proj in the first and last eighth of the layers and every
    third in between (mlx_lm.convert.mixed_quant_predicate_builder).
    """
    if name.startswith("lm_head."):
        return True
    if "v_proj" not in name and "down_proj" not in name:
        return False
    layer, eighth = int(name.split(".")[2]), layers // 8
    in_between = (layer - eighth) % 3 == 2
    return layer < eighth or layer >= 7 * layers // 8 or in_between

"""An MLX artefact: float, affine quantisation, or the source's own quantised values.

Written in blocks of rows, unlike mlx-lm's quantize_model, so that memory does not hold the model.
Names and config are mlx-lm's: `mlx_lm.load` opens the result, unless it needs an input order.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from edge.convert.artefacts.recipes import Recipe
from edge.convert.checkpoint import Checkpoint
from edge.convert.sources.weights import Array, Packed, Packing, Shape
from edge.convert.stream import Block, Writer
from edge.formats.safetensors import Planned, ShardWriter
from edge.model.tensors import ORDER_READERS, expected_shapes, order_of

TORCH_DTYPES = {"F16": "float16", "BF16": "bfloat16"}
CODE_BITS = 32
# Of the matrices that share an order of inputs, the one that it is written after.
FIRST_READERS = tuple(f"{readers[0]}.weight" for readers in ORDER_READERS.values())


@dataclass(frozen=True)
class TensorLayout:
    """How one tensor is stored: as floats, or quantised; `packing` if the source's is kept."""

    name: str
    shape: Shape
    dtype: str
    bits: int | None = None
    group_size: int | None = None
    packing: Packing | None = None

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".weight")

    def planned(self) -> list[Planned]:
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
        """Name of the order of its inputs, if it is written after this matrix."""
        permuted = self.packing is not None and self.packing.permuted
        return order_of(self.stem) if permuted and self.name.endswith(FIRST_READERS) else None


def layout(checkpoint: Checkpoint, recipe: Recipe, exact: bool) -> list[TensorLayout]:
    """Every tensor of an MLX artefact in file order.

    `exact` keeps the source's quantised matrices, and the others in float. Else as in mlx-lm, every
    linear and the embedding are quantised if their rows divide into groups.
    """
    layers, made = checkpoint.config.num_hidden_layers, []
    for name, shape in expected_shapes(checkpoint.config).items():
        bits, group_size, packing = None, recipe.group_size, None
        if exact:
            packing = checkpoint.weights.packing(name)
            bits, group_size = (packing.bits, packing.group_size) if packing else (None, None)
        elif group_size and len(shape) == 2 and shape[1] % group_size == 0:
            sensitive = recipe.high_bits and _is_sensitive(name, layers)
            bits = recipe.high_bits if sensitive else recipe.bits
        made.append(TensorLayout(name, shape, recipe.dtype, bits, group_size, packing))
    return made


def _is_sensitive(name: str, layers: int) -> bool:
    """True for matrices with more bits in mlx-lm's mixed recipes.

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


def source_packing(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Bits and group size of most of the quantised weights, if they can be kept exactly.

    None if the source is not quantised, or if more than half of the quantised weights would be
    stored in float.
    """
    kept: Counter[tuple[int, int]] = Counter()
    by_bits: Counter[int] = Counter()
    lost = 0
    for name, shape in expected_shapes(checkpoint.config).items():
        if packing := checkpoint.weights.packing(name):
            kept[packing.bits, packing.group_size] += prod(shape)
            by_bits[packing.bits] += prod(shape)
        elif name in checkpoint.weights.unpackable:
            lost += prod(shape)
    if not kept or kept.total() < lost:
        return None
    most = by_bits.most_common(1)[0][0]
    return max((key for key in kept if key[0] == most), key=kept.__getitem__)


def quantization_config(tensors: Sequence[TensorLayout]) -> dict[str, Any] | None:
    """config.json's "quantization" of mlx-lm: one setting, and those of modules that differ."""
    settings = {t.stem: (t.group_size, t.bits) for t in tensors if t.bits is not None}
    if not settings:
        return None
    group_size, bits = Counter(settings.values()).most_common(1)[0][0]
    whole = {"group_size": group_size, "bits": bits, "mode": "affine"}
    own = {stem: whole | {"group_size": g, "bits": b} for stem, (g, b) in settings.items()}
    return whole | {stem: setting for stem, setting in own.items() if setting != whole}


class MlxWriter(Writer):
    """One artefact directory."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, exact: bool, folder: Path) -> None:
        folder.mkdir()
        self._checkpoint, self._recipe, self._folder = checkpoint, recipe, folder
        self._layout = {tensor.name: tensor for tensor in layout(checkpoint, recipe, exact)}
        plan = [planned for tensor in self._layout.values() for planned in tensor.planned()]
        self._tensors = ShardWriter(folder, plan)
        # Held until the last row, as they follow the codes in the file.
        self._scales: list[Array] = []
        self._biases: list[Array] = []
        self._bias_error_steps = 0.0

    def takes_packed(self, name: str) -> bool:
        return self._layout[name].packing is not None

    def encode(self, block: Block) -> Sequence[Array]:
        """Rows as codes, scales and biases, or as floats."""
        tensor = self._layout[block.name]
        if tensor.bits is None:
            return [block.rounded(tensor.dtype)]
        # On the CPU: the same bits on every machine.
        with mx.stream(mx.cpu):
            values = mx.array(block.rounded("F16"))
            quantised = mx.quantize(values, group_size=tensor.group_size, bits=tensor.bits)
            return [np.asarray(array) for array in quantised]

    def append(self, name: str, encoded: Sequence[Array], last: bool) -> None:
        """Write codes or floats; scales and biases after the last of them."""
        self._tensors.write(encoded[0])
        if len(encoded) > 1:
            self._scales.append(encoded[1])
            self._biases.append(encoded[2])
        if last:
            for array in (*self._scales, *self._biases):
                self._tensors.write(array)
            self._scales, self._biases = [], []

    def append_packed(self, name: str, packed: Packed) -> None:
        for array in (packed.codes, packed.scales, packed.biases):
            self._tensors.write(array)
        self._bias_error_steps = max(self._bias_error_steps, packed.bias_error_steps)
        if self._layout[name].order_name() and packed.input_order is not None:
            self._tensors.write(packed.input_order.astype(np.int32))

    def finish(self) -> tuple[dict[str, str], list[str]]:
        self._tensors.finish()
        quantization = quantization_config(list(self._layout.values()))
        small = write_small_files(self._checkpoint, self._recipe.dtype, quantization, self._folder)
        return self._tensors.sha256 | small, self._notes()

    def _notes(self) -> list[str]:
        """Sentences on the values of a quantised source that were kept and lost."""
        kept = [tensor for tensor in self._layout.values() if tensor.packing]
        unpackable = self._checkpoint.weights.unpackable
        lost = {name: unpackable[name] for name in self._layout if name in unpackable}
        if not kept:
            if self._recipe.bits is None or not lost or source_packing(self._checkpoint):
                return []
            return [f"the source's own values cannot be kept ({_reasons(lost)})."]
        count = f"{len(kept)} of {len(kept) + len(lost)}"
        notes = [f"{count} quantised matrices keep the source's own values and scales."]
        if lost:
            notes.append(
                f"stored dequantised, in float16, as MLX cannot hold them exactly: "
                f"{_reasons(lost)}."
            )
        if self._bias_error_steps:
            notes.append(
                f"float16 cannot hold every zero point exactly: a weight is off by up to "
                f"{self._bias_error_steps:.2g} of a quantisation step."
            )
        if any(tensor.order_name() for tensor in kept):
            notes.append(
                "the source was quantised in the order of activations (act-order): edge runs this "
                "artefact; for mlx-lm and other loaders make one with --requantise."
            )
        return notes

    def close(self) -> None:
        self._tensors.close()


def _reasons(unpackable: Mapping[str, str]) -> str:
    """Each reason once, with the first matrix and the number of others."""
    first: dict[str, str] = {}
    for name, reason in unpackable.items():
        first.setdefault(reason, name)
    others = Counter(unpackable.values()) - Counter(list(first))
    more = {reason: f" and {count} more" for reason, count in others.items()}
    return "; ".join(f"{name}{more.get(reason, '')}: {reason}" for reason, name in first.items())


def write_small_files(
    checkpoint: Checkpoint, dtype: str, quantization: dict[str, Any] | None, folder: Path
) -> dict[str, str]:
    """Write config.json and the tokenizer files; SHA-256 by name."""
    config = checkpoint.config.to_dict()
    config["torch_dtype"] = TORCH_DTYPES[dtype]
    if quantization:
        config["quantization"] = config["quantization_config"] = quantization
    files = dict(checkpoint.tokenizer_files)
    files["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}

"""Write an MLX artefact: float, affine quantisation, or the source's own quantised values.

Rows at a time instead of through mlx-lm's quantize_model, so that memory holds a few
blocks of one tensor rather than the model. Names and config are mlx-lm's, so plain
`mlx_lm.load` opens the result, unless it needs an input order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from edge.convert.artefacts.block import Block
from edge.convert.artefacts.layout import Form, quantization_config, source_packing
from edge.convert.artefacts.recipes import Recipe
from edge.convert.artefacts.writer import Encoded
from edge.convert.checkpoint import Checkpoint
from edge.convert.sources.weights import Array, Packed
from edge.formats.safetensors_writer import SafetensorsWriter

TORCH_DTYPES = {"F16": "float16", "BF16": "bfloat16"}


class MlxWriter:
    """One artefact directory.

    Args:
        checkpoint: what is converted.
        recipe: an MLX recipe.
        forms: how each tensor is stored.
        folder: the directory to make.
    """

    def __init__(
        self, checkpoint: Checkpoint, recipe: Recipe, forms: Sequence[Form], folder: Path
    ) -> None:
        folder.mkdir()
        self._checkpoint, self._recipe, self._folder = checkpoint, recipe, folder
        self._forms = {form.name: form for form in forms}
        plan = [planned for form in forms for planned in form.planned()]
        self._tensors = SafetensorsWriter(folder, plan)
        # What follows a matrix's codes: small, so it waits for the last row.
        self._scales: list[Array] = []
        self._biases: list[Array] = []
        self._bias_error_steps = 0.0

    def takes_packed(self, name: str) -> bool:
        """Whether the tensor is kept as the source has it quantised."""
        return self._forms[name].packing is not None

    def encode(self, block: Block) -> Encoded:
        """Rows as codes, scales and biases, or as floats."""
        form = self._forms[block.name]
        if form.bits is None:
            return [block.bfloat16 if form.dtype == "BF16" else block.float16]
        # On the CPU everywhere: the same bits whatever the machine.
        with mx.stream(mx.cpu):
            quantised = mx.quantize(
                mx.array(block.float16), group_size=form.group_size, bits=form.bits
            )
            return [np.asarray(array) for array in quantised]

    def append(self, name: str, encoded: Encoded) -> None:
        """Write rows."""
        self._tensors.write(encoded[0])
        if len(encoded) > 1:
            self._scales.append(encoded[1])
            self._biases.append(encoded[2])

    def append_packed(self, name: str, packed: Packed) -> None:
        """Write a matrix as it is."""
        for array in (packed.codes, packed.scales, packed.biases):
            self._tensors.write(array)
        self._bias_error_steps = max(self._bias_error_steps, packed.bias_error_steps)
        if self._forms[name].order_name() and packed.input_order is not None:
            self._tensors.write(packed.input_order.astype(np.int32))

    def end_tensor(self, name: str) -> None:
        """Write what waited for the last row."""
        for array in (*self._scales, *self._biases):
            self._tensors.write(array)
        self._scales.clear()
        self._biases.clear()

    def finish(self) -> dict[str, str]:
        """Write the index, the config and what travels along."""
        self._tensors.finish()
        quantization = quantization_config(list(self._forms.values()))
        small = write_small_files(self._checkpoint, self._recipe.dtype, quantization, self._folder)
        return self._tensors.sha256 | small

    def notes(self) -> list[str]:
        """What was kept of a quantised source, how exactly, and why the rest was not."""
        kept = [form for form in self._forms.values() if form.packing]
        reasons = self._checkpoint.weights.unpackable
        unpackable = {name: reasons[name] for name in self._forms if name in reasons}
        if not kept:
            if self._recipe.bits is None or not unpackable or source_packing(self._checkpoint):
                return []
            return [f"the source's own values cannot be kept ({_reasons(unpackable)})."]
        notes = [
            f"{len(kept)} of {len(kept) + len(unpackable)} quantised matrices keep the source's "
            f"own values and scales."
        ]
        if unpackable:
            notes.append(
                f"stored dequantised, in float16, as MLX cannot hold them exactly: "
                f"{_reasons(unpackable)}."
            )
        if self._bias_error_steps:
            notes.append(
                f"float16 cannot hold every zero point exactly: a weight is off by up to "
                f"{self._bias_error_steps:.2g} of a quantisation step."
            )
        if any(form.order_name() for form in kept):
            notes.append(
                "the source was quantised in the order of activations (act-order): edge runs this "
                "artefact; for mlx-lm and other loaders make one with --requantise."
            )
        return notes

    def close(self) -> None:
        """Let go of an open shard."""
        self._tensors.close()


def _reasons(unpackable: Mapping[str, str]) -> str:
    """Every reason once, with the first matrix it holds for."""
    names: dict[str, list[str]] = {}
    for name, reason in unpackable.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(
        f"{held[0]}{f' and {len(held) - 1} more' if len(held) > 1 else ''}: {reason}"
        for reason, held in names.items()
    )


def write_small_files(
    checkpoint: Checkpoint, dtype: str, quantization: dict[str, Any] | None, folder: Path
) -> dict[str, str]:
    """Write config.json and what travels along.

    Args:
        checkpoint: where they come from.
        dtype: of what is not quantised, safetensors' spelling.
        quantization: config.json's "quantization", if anything is quantised.
        folder: the artefact.

    Returns:
        Digests by name.
    """
    config = checkpoint.config.to_dict()
    config["torch_dtype"] = TORCH_DTYPES[dtype]
    if quantization:
        config["quantization"] = config["quantization_config"] = quantization
    files = dict(checkpoint.companions)
    files["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}

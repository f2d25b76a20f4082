"""An MLX directory as a source: to convert again, or to compare with what it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from edge.checkpoints.sources.safetensors_file import SafetensorsFile
from edge.checkpoints.sources.weights import Array, Packed, Packing, Shape
from edge.errors import EdgeError
from edge.model.config import ModelConfig
from edge.model.tensors import expected_shapes

CODE_BITS = 32
# Where the order of a matrix's inputs is kept: shared by the matrices that read the same ones.
ORDER_OF = {
    "self_attn.q_proj": "self_attn.qkv_order",
    "self_attn.k_proj": "self_attn.qkv_order",
    "self_attn.v_proj": "self_attn.qkv_order",
    "self_attn.o_proj": "self_attn.o_order",
    "mlp.gate_proj": "mlp.gate_up_order",
    "mlp.up_proj": "mlp.gate_up_order",
}


class MlxWeights:
    """Tensors of an MLX directory, quantised ones dequantised.

    Args:
        files: its safetensors files.
        config: the network.

    Raises:
        EdgeError: codes, scales and biases of a matrix do not fit each other.
    """

    def __init__(self, files: tuple[SafetensorsFile, ...], config: ModelConfig):
        self._file_of = {name: file for file in files for name in file.entries}
        self.files: tuple[Path, ...] = tuple(file.path for file in files)
        self._packings: dict[str, Packing] = {}
        shapes: dict[str, Shape] = {}
        expected = expected_shapes(config)
        for name, file in self._file_of.items():
            if name.endswith((".scales", ".biases", "_order")):
                continue
            shapes[name] = file.entries[name].shape
            if self._part(name, "scales") in self._file_of and name in expected:
                self._packings[name] = self._packing_of(name, expected[name])
                shapes[name] = expected[name]
        self.shapes: Mapping[str, Shape] = shapes
        self.quantised = bool(self._packings)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows of a tensor, dequantised in float32."""
        if name not in self._packings:
            return self._file_of[name].read(name, start, stop)
        packed = self._read_packed(name, start, stop)
        packing = self._packings[name]
        with mx.stream(mx.cpu):
            values = np.asarray(
                mx.dequantize(
                    mx.array(packed.codes),
                    mx.array(packed.scales.astype(np.float32)),
                    mx.array(packed.biases.astype(np.float32)),
                    group_size=packing.group_size,
                    bits=packing.bits,
                )
            )
        if packed.input_order is None:
            return values
        dense = np.empty_like(values)
        dense[:, packed.input_order] = values
        return dense

    def packing(self, name: str) -> Packing | None:
        """Bits and group size of a quantised matrix."""
        return self._packings.get(name)

    def read_packed(self, name: str) -> Packed:
        """A quantised matrix as it is."""
        return self._read_packed(name, 0, None)

    def _read_packed(self, name: str, start: int, stop: int | None) -> Packed:
        codes, scales, biases = (
            self._file_of[part].read(part, start, stop)
            for part in (name, self._part(name, "scales"), self._part(name, "biases"))
        )
        order = self._order_of(name)
        order_values = None if order is None else self._file_of[order].read(order)
        return Packed(self._packings[name], codes.view(np.uint32), scales, biases, order_values)

    def _order_of(self, name: str) -> str | None:
        stem = name.removesuffix(".weight")
        for ending, order in ORDER_OF.items():
            if stem.endswith(ending):
                full = stem.removesuffix(ending) + order
                return full if full in self._file_of else None
        return None

    @staticmethod
    def _part(name: str, part: str) -> str:
        return f"{name.removesuffix('.weight')}.{part}"

    def _packing_of(self, name: str, shape: Shape) -> Packing:
        """From the shapes alone, which no setting can contradict."""
        codes = self._file_of[name].entries[name].shape
        parts = [self._part(name, part) for part in ("scales", "biases")]
        found = [self._file_of[p].entries[p].shape for p in parts if p in self._file_of]
        rows, columns = shape
        fits = (
            len(found) == 2
            and found[0] == found[1]
            and len(codes) == len(found[0]) == 2
            and codes[0] == found[0][0] == rows
            and prod(found[0]) > 0
            and columns % found[0][1] == 0
            and codes[1] * CODE_BITS % columns == 0
        )
        if not fits:
            raise EdgeError(
                f"{self._file_of[name].path}: the codes, scales and biases of {name} do not fit "
                f"{list(shape)} in MLX's affine mode; convert from the unquantised checkpoint."
            )
        bits, group_size = codes[1] * CODE_BITS // columns, columns // found[0][1]
        return Packing(bits, group_size, self._order_of(name) is not None)

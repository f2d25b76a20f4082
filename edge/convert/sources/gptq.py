"""GPTQ checkpoints (AutoGPTQ, optimum, GPTQModel) as a source of weights.

The tensors decide what they can: bits, groups and the order of inputs are read from each
matrix, so per-module overrides (`dynamic`) need no reading. The settings decide the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock

import numpy as np

from edge.convert.sources.gptq_matrix import (
    PARTS,
    GptqSettings,
    Matrix,
    Tensors,
    read_floats,
    read_groups,
    scan_matrix,
    wrong,
)
from edge.convert.sources.weights import Packed, Packing, Weights, files_of
from edge.errors import EdgeError
from edge.formats import gptq as fmt
from edge.formats.safetensors import INTEGERS, Array, Shape
from edge.model.config import ModelConfig
from edge.model.tensors import expected_shapes

# Matrices that share their inputs, hence one order of them.
QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
WITH_OWN_ORDER = ("o_proj", "down_proj")


@dataclass(frozen=True)
class _Parts:
    """One matrix's tensors, zero points as meant."""

    qweight: Array
    zeros: Array
    scales: Array
    group_of: Array


class GptqWeights(Weights):
    """The weights of a GPTQ checkpoint, dequantised or packed.

    `read_packed` of gate_proj and up_proj gives their outputs in the order of down_proj's
    inputs, which spares a gather at run time; so these three are used packed together, or
    none of them. `read` always keeps the network's orders.

    Biases that old writers add to every matrix are left out where they are zero and the
    network has none; `config.matching(weights.shapes)` then gives the network's switches.
    """

    quantised = True

    def __init__(self, tensors: Tensors, settings: GptqSettings, config: ModelConfig):
        self._tensors, self._settings = tensors, settings
        self.files = files_of(tensors)
        self._matrices = self._scan(config)
        self.shapes = self._dense_shapes(config)
        self._zeros_as = self._zero_points_as()
        self.warnings = tuple(self._warnings())
        self._settle_orders()
        self._last: tuple[str, _Parts] | None = None
        self._lock = Lock()  # of _last

    @cached_property
    def unpackable(self) -> Mapping[str, str]:
        """Why a quantised tensor has no packing, by name."""
        return {f"{stem}.weight": m.reason for stem, m in self._matrices.items() if m.reason}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows start to stop, dequantised to float32 where quantised, inputs in their order."""
        stem = _stem(name)
        if stem not in self._matrices:
            return self._read_ordinary(name, start, stop)
        parts, bits = self._parts(stem), self._matrices[stem].bits
        return fmt.dequantise(
            parts.qweight, parts.zeros, parts.scales, parts.group_of, bits, slice(start, stop)
        )

    def packing(self, name: str) -> Packing | None:
        """How MLX stores the matrix exactly; None for other tensors and those in `unpackable`."""
        stem = _stem(name)
        if not self._is_packed(stem):
            return None
        matrix = self._matrices[stem]
        size = fmt.mlx_group_size(matrix.group_size)
        assert size is not None  # otherwise there is a reason
        return Packing(matrix.bits, size, self._input_order(stem) is not None)

    def read_packed(self, name: str) -> Packed:
        """A matrix that has a packing, in that form: codes and scales bit for bit."""
        packing, stem = self.packing(name), _stem(name)
        if packing is None:
            raise ValueError(f"{name} has no packing")
        matrix, parts, rows = self._matrices[stem], self._parts(stem), self._output_order(stem)
        biases, error_steps = fmt.affine_biases(parts.zeros, parts.scales)
        repeats = matrix.group_size // packing.group_size
        return Packed(
            packing=packing,
            codes=fmt.affine_codes(parts.qweight, matrix.bits, matrix.order, rows),
            scales=_by_output(parts.scales.astype(np.float16), repeats, rows),
            biases=_by_output(biases, repeats, rows),
            input_order=self._input_order(stem),
            bias_error_steps=error_steps,
        )

    def _is_packed(self, stem: str) -> bool:
        return stem in self._matrices and self._matrices[stem].reason is None

    def _input_order(self, stem: str) -> Array | None:
        """The order a packed matrix expects its inputs in; down_proj finds them so."""
        return None if _leaf(stem) == "down_proj" else self._matrices[stem].order

    def _output_order(self, stem: str) -> Array | None:
        """The order in which a packed matrix gives its outputs, None for the network's."""
        (down,) = _siblings(stem, ["down_proj"])
        folded = _leaf(stem) in GATE_UP and self._is_packed(down)
        return self._matrices[down].order if folded else None

    def _read_ordinary(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        if self._tensors[name].dtype in INTEGERS:
            raise wrong(self._tensors, name, "holds whole numbers where weights belong")
        return read_floats(self._tensors[name], start, stop)

    def _parts(self, stem: str) -> _Parts:
        """A matrix's tensors; the last one's are kept, for threads that read its blocks."""
        with self._lock:
            if self._last is None or self._last[0] != stem:
                self._last = None  # before the next are read, not after
                self._last = (stem, self._load(stem))
            return self._last[1]

    def _load(self, stem: str) -> _Parts:
        matrix, tensors = self._matrices[stem], self._tensors
        zeros = fmt.unpack(tensors[f"{stem}.qzeros"].read(), matrix.bits)
        return _Parts(
            qweight=tensors[f"{stem}.qweight"].read(),
            zeros=fmt.zero_points(zeros, matrix.bits, self._zeros_as[stem]),
            scales=read_floats(tensors[f"{stem}.scales"]),
            group_of=read_groups(tensors, stem, self._settings, matrix.shape[1], matrix.groups),
        )

    def _scan(self, config: ModelConfig) -> dict[str, Matrix]:
        """Every quantised matrix by its name without `.weight`."""
        stems = [_stem(name, ".qweight") for name in self._tensors if name.endswith(".qweight")]
        if not stems:
            raise EdgeError(
                f"{self._settings.where} says that the weights are GPTQ's, but no file holds a "
                f"qweight; download the checkpoint again."
            )
        for name in self._tensors:
            if name.endswith(".weight") and f"{_stem(name)}.qweight" in self._tensors:
                raise wrong(self._tensors, name, "is there both quantised and not")
        inputs = {_stem(name): s[1] for name, s in expected_shapes(config).items() if len(s) == 2}
        return {
            stem: scan_matrix(self._tensors, stem, self._settings, inputs.get(stem))
            for stem in stems
        }

    def _dense_shapes(self, config: ModelConfig) -> dict[str, Shape]:
        dropped = self._biases_to_drop(config)
        shapes: dict[str, Shape] = {}
        for name, tensor in self._tensors.items():
            stem, _, kind = name.rpartition(".")
            if kind == "qweight":
                shapes[f"{stem}.weight"] = self._matrices[stem].shape
            elif kind not in PARTS and name not in dropped:
                shapes[name] = tensor.shape
        return shapes

    def _biases_to_drop(self, config: ModelConfig) -> set[str]:
        """Zero biases of quantised matrices that the network has none for."""
        names = [f"{stem}.bias" for stem in self._matrices if f"{stem}.bias" in self._tensors]
        used = [name for name in names if self._read_ordinary(name).any()]
        wanted = set(expected_shapes(config))
        if any(_leaf(_stem(name, ".bias")) in QKV for name in used):
            wanted |= set(expected_shapes(config.matching(names)))
        for name in used:
            if name not in wanted:
                reason = "is a bias that is not zero and that the network has no place for"
                raise wrong(self._tensors, name, reason)
        return set(names) - wanted

    def _zero_points_as(self) -> dict[str, str]:
        """The format of each matrix's zero points.

        Some files carry the wrong label, and symmetric zero points show their format; those of
        a checkpoint that is not symmetric do not.
        """
        label = self._settings.checkpoint_format
        if not self._settings.sym:
            return dict.fromkeys(self._matrices, label)
        shown = {matrix.zeros_as for matrix in self._matrices.values() if matrix.zeros_as}
        usual = shown.pop() if len(shown) == 1 else label
        return {stem: matrix.zeros_as or usual for stem, matrix in self._matrices.items()}

    def _warnings(self) -> Iterator[str]:
        """Doubtful zero points, in sentences."""
        where, label = self._settings.where, self._settings.checkpoint_format
        unlike = sum(matrix.zeros_as != label for matrix in self._matrices.values())
        if self._settings.sym and unlike:
            yield (
                f"{where} says that zero points are symmetric and stored as {label!r}, but those "
                f"of {unlike} of {len(self._matrices)} matrices are not; edge follows the tensors, "
                f"so check the model's answers."
            )
        form_1 = [self._matrices[s] for s, form in self._zeros_as.items() if form == fmt.FORMAT_1]
        if any(matrix.zeros_wrap for matrix in form_1):
            yield (
                f"{where}: some matrices hold a zero point of 0, which programs write and read in "
                f"different ways, so results may differ from theirs; prefer a symmetric checkpoint "
                f"or one in 'gptq_v2'."
            )

    def _settle_orders(self) -> None:
        """Refuse the orders that an artefact has no place for."""
        ordered = [s for s, m in self._matrices.items() if m.order is not None and not m.reason]
        for stem in ordered:
            family = next((f for f in (QKV, GATE_UP) if _leaf(stem) in f), None)
            if family is not None and not self._share_order(_siblings(stem, family)):
                self._refuse(stem, f"{', '.join(family)} have no order of inputs in common")
            elif family is None and _leaf(stem) not in WITH_OWN_ORDER:
                self._refuse(stem, "its inputs are in an order that the network cannot use")
        for stem in ordered:
            if _leaf(stem) == "down_proj":
                self._settle_down(stem)

    def _share_order(self, stems: Sequence[str]) -> bool:
        """All are packed, in one order."""
        if not all(map(self._is_packed, stems)):
            return False
        first, *others = (self._matrices[stem].order for stem in stems)
        return first is not None and all(
            order is not None and np.array_equal(order, first) for order in others
        )

    def _settle_down(self, stem: str) -> None:
        """Its order is folded into the outputs of the two before it, if these allow."""
        inputs = self._matrices[stem].shape[1]
        for before in _siblings(stem, GATE_UP):
            if not self._is_packed(before) or self._matrices[before].shape[0] != inputs:
                self._refuse(stem, "its order of inputs needs gate_proj and up_proj packed too")
            elif f"{before}.bias" in self.shapes:  # which would have to follow
                self._refuse(stem, f"its order of inputs leaves no place for {before}.bias")

    def _refuse(self, stem: str, reason: str) -> None:
        self._matrices[stem] = replace(self._matrices[stem], reason=reason)


def _stem(name: str, ending: str = ".weight") -> str:
    return name.removesuffix(ending)


def _leaf(stem: str) -> str:
    return stem.rpartition(".")[2]


def _siblings(stem: str, leaves: Sequence[str]) -> list[str]:
    """The matrices of these names in the same block."""
    prefix = stem.rpartition(".")[0]
    return [f"{prefix}.{leaf}" for leaf in leaves]


def _by_output(by_group: Array, repeats: int, rows: Array | None) -> Array:
    """(G, O) as MLX has it, (O, G * repeats), rows in the order given."""
    columns = by_group.T if rows is None else by_group.T[rows]
    return np.ascontiguousarray(np.repeat(columns, repeats, axis=1))

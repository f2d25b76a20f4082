"""GPTQ checkpoints (AutoGPTQ, optimum, GPTQModel) as a source of weights.

The tensors decide what they can: bits, groups and the order of inputs are read from each
matrix, so per-module overrides (`dynamic`) need no reading. The settings decide the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np

from edge.convert.sources.gptq_matrix import PARTS, Matrix, Tensors, read_groups, scan_matrix
from edge.convert.sources.gptq_settings import GptqSettings, is_gptq, read_gptq_settings
from edge.convert.sources.weights import Array, Packed, Packing, Shape
from edge.errors import EdgeError
from edge.formats import gptq as fmt
from edge.formats.safetensors import INTEGERS, SafetensorsFile
from edge.model.config import ModelConfig
from edge.model.tensors import expected_shapes

__all__ = ["GptqSettings", "GptqWeights", "is_gptq", "read_gptq_settings"]

# Matrices that share their inputs, hence one order of them.
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
WITH_OWN_ORDER = ("o_proj", "down_proj")


@dataclass(frozen=True)
class _Parts:
    """One matrix's tensors, zero points as meant."""

    qweight: Array
    zeros: Array
    scales: Array
    group_of: Array


class GptqWeights:
    """The weights of a GPTQ checkpoint, dequantised or packed.

    `read_packed` of gate_proj and up_proj gives their outputs in the order of down_proj's
    inputs, which spares a gather at run time; so these three are used packed together, or
    none of them. `read` always keeps the network's orders.

    Biases that old writers add to every matrix are left out where they are zero and the
    network has none; `config.matching(weights.shapes)` then gives the network's switches.

    Attributes:
        shapes: every tensor's shape, dequantised, by Hugging Face name.
        files: the safetensors files.
        warnings: what the user should know before trusting the weights.
        unpackable: why a quantised tensor has no packing, by name.

    Raises:
        EdgeError: tensors are missing, contradict each other, or hold impossible values.
    """

    quantised = True

    def __init__(
        self, files: Sequence[SafetensorsFile], settings: GptqSettings, config: ModelConfig
    ):
        self._tensors = Tensors(files)
        self._settings = settings
        self.files: tuple[Path, ...] = self._tensors.paths
        self._matrices = self._scan(config)
        self.shapes: Mapping[str, Shape] = self._dense_shapes(config)
        self._zeros_as = _zero_points_as(self._matrices, settings)
        self.warnings = tuple(_doubts(self._matrices, self._zeros_as, settings))
        self._settle_orders()
        self.unpackable: Mapping[str, str] = {
            f"{stem}.weight": matrix.reason
            for stem, matrix in self._matrices.items()
            if matrix.reason
        }
        self._last: tuple[str, _Parts] | None = None
        self._lock = Lock()  # of _last

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
        matrix = self._matrices.get(_stem(name))
        if matrix is None or matrix.reason:
            return None
        size = fmt.mlx_group_size(matrix.group_size)
        assert size is not None  # otherwise there is a reason
        return Packing(matrix.bits, size, self._input_order(_stem(name)) is not None)

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

    def _input_order(self, stem: str) -> Array | None:
        """The order a packed matrix expects its inputs in; down_proj finds them so."""
        return None if stem.endswith(".down_proj") else self._matrices[stem].order

    def _output_order(self, stem: str) -> Array | None:
        """The order in which a packed matrix gives its outputs, None for the network's."""
        prefix, _, leaf = stem.rpartition(".")
        down = self._matrices.get(f"{prefix}.down_proj")
        if leaf not in ("gate_proj", "up_proj") or down is None or down.reason:
            return None
        return down.order

    def _read_ordinary(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        if self._tensors.entry(name).dtype in INTEGERS:
            raise self._tensors.wrong(name, "holds whole numbers where weights belong")
        return self._tensors.read(name, start, stop)

    def _parts(self, stem: str) -> _Parts:
        """A matrix's tensors; the last one's are kept, for threads that read its blocks."""
        with self._lock:
            if self._last is None or self._last[0] != stem:
                self._last = None  # before the next are read, not after
                self._last = (stem, self._load(stem))
            return self._last[1]

    def _load(self, stem: str) -> _Parts:
        matrix, tensors = self._matrices[stem], self._tensors
        return _Parts(
            qweight=tensors.read(f"{stem}.qweight"),
            zeros=fmt.zero_points(
                tensors.read(f"{stem}.qzeros"), matrix.bits, self._zeros_as[stem]
            ),
            scales=tensors.read(f"{stem}.scales"),
            group_of=read_groups(tensors, stem, self._settings, matrix.shape[1], matrix.groups),
        )

    def _scan(self, config: ModelConfig) -> dict[str, Matrix]:
        """Every quantised matrix by its name without `.weight`."""
        stems = [_stem(name, ".qweight") for name in self._tensors if name.endswith(".qweight")]
        self._refuse_loose_parts(set(stems))
        inputs = {_stem(name): s[1] for name, s in expected_shapes(config).items() if len(s) == 2}
        return {
            stem: scan_matrix(self._tensors, stem, self._settings, inputs.get(stem))
            for stem in stems
        }

    def _refuse_loose_parts(self, stems: set[str]) -> None:
        if not stems:
            raise EdgeError(
                f"{self._settings.where} says that the weights are GPTQ's, but no file holds a "
                f"qweight; download the checkpoint again."
            )
        for name in self._tensors:
            stem, _, kind = name.rpartition(".")
            if kind in PARTS and stem not in stems:
                raise self._tensors.wrong(name, f"has no {stem}.qweight beside it")
            if kind == "weight" and stem in stems:
                raise self._tensors.wrong(name, "is there both quantised and not")

    def _dense_shapes(self, config: ModelConfig) -> dict[str, Shape]:
        dropped = self._biases_to_drop(config)
        shapes: dict[str, Shape] = {}
        for name in self._tensors:
            stem, _, kind = name.rpartition(".")
            if kind == "qweight":
                shapes[f"{stem}.weight"] = self._matrices[stem].shape
            elif kind not in PARTS and name not in dropped:
                shapes[name] = self._tensors.entry(name).shape
        return shapes

    def _biases_to_drop(self, config: ModelConfig) -> set[str]:
        """Zero biases of quantised matrices that the network has none for."""
        names = [f"{stem}.bias" for stem in self._matrices if f"{stem}.bias" in self._tensors]
        used = [name for name in names if self._read_ordinary(name).any()]
        wanted = set(expected_shapes(config))
        if any(_leaf(_stem(name, ".bias")) in SHARED_INPUTS[0] for name in used):
            wanted |= set(expected_shapes(config.matching(names)))
        for name in used:
            if name not in wanted:
                raise self._tensors.wrong(
                    name, "is a bias that is not zero and that the network has no place for"
                )
        return set(names) - wanted

    def _settle_orders(self) -> None:
        """Refuse the orders that an artefact has no place for."""
        ordered = [s for s, m in self._matrices.items() if m.order is not None and not m.reason]
        for stem in ordered:
            family = next((f for f in SHARED_INPUTS if _leaf(stem) in f), None)
            if family is not None and not self._share_order(_siblings(stem, family)):
                self._refuse(stem, f"{', '.join(family)} have no order of inputs in common")
            elif family is None and _leaf(stem) not in WITH_OWN_ORDER:
                self._refuse(stem, "its inputs are in an order that the network cannot use")
        for stem in ordered:
            if _leaf(stem) == "down_proj":
                self._settle_down(stem)

    def _share_order(self, stems: Sequence[str]) -> bool:
        """Whether all are packed, in one order."""
        matrices = [self._matrices.get(stem) for stem in stems]
        orders = [m.order for m in matrices if m is not None and not m.reason]
        first = orders[0] if len(orders) == len(stems) else None
        return first is not None and all(
            order is not None and np.array_equal(order, first) for order in orders
        )

    def _settle_down(self, stem: str) -> None:
        """Its order is folded into the outputs of the two before it, if these allow."""
        for before in _siblings(stem, SHARED_INPUTS[1]):
            matrix = self._matrices.get(before)
            if matrix is None or matrix.reason or matrix.shape[0] != self._matrices[stem].shape[1]:
                self._refuse(stem, "its order of inputs needs gate_proj and up_proj packed too")
            elif f"{before}.bias" in self.shapes:  # which would have to follow
                self._refuse(stem, f"its order of inputs leaves no place for {before}.bias")

    def _refuse(self, stem: str, reason: str) -> None:
        self._matrices[stem] = replace(self._matrices[stem], reason=reason)


def _zero_points_as(matrices: Mapping[str, Matrix], settings: GptqSettings) -> dict[str, str]:
    """The format of each matrix's zero points.

    Some files carry the wrong label, and symmetric zero points show their format; those of
    a checkpoint that is not symmetric do not.
    """
    label = settings.checkpoint_format
    if not settings.sym:
        return dict.fromkeys(matrices, label)
    shown = {matrix.zeros_as for matrix in matrices.values() if matrix.zeros_as}
    usual = shown.pop() if len(shown) == 1 else label
    return {stem: matrix.zeros_as or usual for stem, matrix in matrices.items()}


def _doubts(
    matrices: Mapping[str, Matrix], zeros_as: Mapping[str, str], settings: GptqSettings
) -> Iterable[str]:
    """What is doubtful about zero points, in sentences."""
    where, label, total = settings.where, settings.checkpoint_format, len(matrices)
    if others := sum(form != label for form in zeros_as.values()):
        yield (
            f"{where} says that zero points are stored as {label!r}, but {others} of {total} "
            f"matrices hold the other format's symmetric ones; edge follows the tensors."
        )
    if settings.sym and (uneven := sum(not matrix.zeros_as for matrix in matrices.values())):
        yield (
            f"{where} says that zero points are symmetric, but those of {uneven} of {total} "
            f"matrices are not; edge follows the tensors, so check the model's answers."
        )
    wrapped = [s for s, m in matrices.items() if m.zeros_wrap and zeros_as[s] == fmt.FORMAT_1]
    if wrapped:
        yield (
            f"{where}: {len(wrapped)} of {total} matrices hold a zero point of 0, which programs "
            f"write and read in different ways, so results may differ from theirs; prefer a "
            f"symmetric checkpoint or one in 'gptq_v2'."
        )


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

"""GPTQ checkpoints (AutoGPTQ, optimum, GPTQModel) as a source of weights.

Bits, groups and the input order are read from each matrix, so per-module overrides (`dynamic`)
are not read. The settings decide the rest.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from edge.convert.sources.weights import Packed, Packing, Weights
from edge.errors import EdgeError
from edge.formats import gptq as fmt
from edge.formats.safetensors import FLOATS, INTEGERS, Array, Shape, StoredTensor
from edge.model.config import ModelConfig
from edge.model.tensors import expected_shapes

PARTS = ("qweight", "qzeros", "scales", "g_idx")
LARGEST_FLOAT16 = 65504.0
Tensors = Mapping[str, StoredTensor]
# Matrices that share their inputs, hence the input order.
QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
WITH_OWN_ORDER = ("o_proj", "down_proj")


class GptqSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint's settings of its quantisation."""

    where: str  # the file that holds them
    bits: Literal[2, 3, 4, 8]
    group_size: Annotated[int, msgspec.Meta(ge=-1, lt=1 << 31)] = -1  # -1: all inputs
    sym: bool = True  # zero points are the middle of the range
    checkpoint_format: Literal["gptq", "gptq_v2"] = "gptq"  # how zero points are stored
    quant_method: Literal["gptq"] = "gptq"
    pack_dtype: Literal["int32", "torch.int32"] = "int32"


def parse_settings(raw: Mapping[str, Any], where: str) -> GptqSettings:
    """Settings under the names of AutoGPTQ, optimum and GPTQModel, old and new."""
    found = {
        "bits": raw.get("bits", raw.get("w_bit")),
        "group_size": raw.get("group_size", raw.get("q_group_size")),
        "checkpoint_format": raw.get("checkpoint_format") or raw.get("format"),
        **{name: raw.get(name) for name in ("sym", "quant_method", "pack_dtype")},
    }
    if raw.get("is_marlin_format"):
        found["checkpoint_format"] = "marlin"
    given = {name: value for name, value in found.items() if value is not None}
    try:
        return msgspec.convert({"where": where, **given}, GptqSettings)
    except msgspec.ValidationError as error:
        raise EdgeError(
            f"{where}: {error}; edge reads GPTQ of 2, 3, 4 and 8 bits in the formats 'gptq' and "
            f"'gptq_v2', so choose such a checkpoint, or the unquantised one."
        ) from None


@dataclass
class Matrix:
    """Everything about a quantised matrix but its codes."""

    bits: int
    shape: tuple[int, int]  # outputs, inputs
    group_of: Array  # int (inputs,), the group of each input
    zeros_as: str | None  # format of its zero points, if symmetric
    zeros_wrap: bool  # a zero point is stored as the largest number: ambiguous in format 1
    group_size: int  # 0 if sizes differ
    order: Array | None  # int32 (inputs,), makes groups contiguous; None for the identity
    reason: str | None = None  # why MLX cannot store it without rounding again


def scan_matrix(tensors: Tensors, stem: str, settings: GptqSettings, inputs: int | None) -> Matrix:
    """Read all of a matrix but its codes; `inputs` is their number in the network, if known."""
    bits, shape, groups = _layout(tensors, stem, settings, inputs)
    scales = read_floats(tensors[f"{stem}.scales"])
    if not np.isfinite(scales).all():
        raise _bad_tensor(tensors, f"{stem}.scales", "holds values that are not finite")
    zeros = fmt.unpack(tensors[f"{stem}.qzeros"].read(), bits)
    zeros_as, wrap = fmt.symmetric_format(zeros, bits), bool(zeros.max() == (1 << bits) - 1)
    group_of = _read_groups(tensors, stem, settings, shape[1], groups)
    size, order = fmt.in_groups(group_of, groups) or (0, None)
    reason = _unpackable_reason(size, bits, scales)
    return Matrix(bits, shape, group_of, zeros_as, wrap, size, order, reason)


def _read_groups(
    tensors: Tensors, stem: str, settings: GptqSettings, inputs: int, groups: int
) -> Array:
    """The group of each input, int (inputs,), each within 0 to groups - 1."""
    name = f"{stem}.g_idx"
    stored = tensors[name].read() if name in tensors else None
    if stored is not None and (groups == 1 or stored.any()):
        if stored.min() < 0 or stored.max() >= groups:
            raise _bad_tensor(tensors, name, f"names a group outside 0 to {groups - 1}")
        return stored
    # Writers before act-order left g_idx zero.
    for size in (settings.group_size, inputs // groups):
        if size > 0 and -(-inputs // size) == groups:
            return np.arange(inputs) // size
    raise _bad_tensor(tensors, f"{stem}.scales", f"has {groups} groups for {inputs} inputs")


def read_floats(tensor: StoredTensor, start: int = 0, stop: int | None = None) -> Array:
    """Rows of a tensor, float64 narrowed to float32."""
    array = tensor.read(start, stop)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _bad_tensor(tensors: Tensors, name: str, reason: str) -> EdgeError:
    path = tensors[name].path if name in tensors else next(iter(tensors.values())).path.parent
    return EdgeError(f"{path}: tensor {name} {reason}; download the checkpoint again.")


def _layout(
    tensors: Tensors, stem: str, settings: GptqSettings, inputs: int | None
) -> tuple[int, tuple[int, int], int]:
    """Bits, (outputs, inputs) and groups; an EdgeError if shapes disagree."""
    rows, outputs = _part_shape(tensors, f"{stem}.qweight", ("I32",), 2)
    groups, width = _part_shape(tensors, f"{stem}.qzeros", ("I32",), 2)
    scales = _part_shape(tensors, f"{stem}.scales", FLOATS, 2)
    if f"{stem}.g_idx" in tensors:
        (inputs,) = _part_shape(tensors, f"{stem}.g_idx", INTEGERS, 1)
    inputs = inputs or rows * 32 // settings.bits
    bits = rows * 32 // max(1, inputs)
    if bits not in fmt.BITS or bits * inputs != rows * 32:
        raise _bad_tensor(tensors, f"{stem}.qweight", f"has {rows} rows for {inputs} inputs")
    if scales != (groups, outputs):
        raise _bad_tensor(tensors, f"{stem}.scales", f"has shape {scales}, not {(groups, outputs)}")
    if width * 32 != outputs * bits:
        raise _bad_tensor(tensors, f"{stem}.qzeros", f"has {width} columns for {outputs} outputs")
    return bits, (outputs, inputs), groups


def _part_shape(tensors: Tensors, name: str, dtypes: Container[str], axes: int) -> tuple[int, ...]:
    if name not in tensors:
        raise _bad_tensor(tensors, name, "is missing")
    dtype, shape = tensors[name].dtype, tensors[name].shape
    if dtype not in dtypes or len(shape) != axes or not math.prod(shape):
        raise _bad_tensor(tensors, name, f"is {dtype} of shape {shape}")
    return shape


def _unpackable_reason(group_size: int, bits: int, scales: Array) -> str | None:
    """Why a matrix by itself does not fit MLX's affine format."""
    if not group_size:
        return "its groups have different sizes"
    if fmt.mlx_group_size(group_size) is None:
        return f"its groups of {group_size} inputs do not divide into MLX's 32, 64 or 128"
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if scales.dtype != np.float16 and (half != scales).any():
        return "its scales do not fit float16"
    # Magnitudes sort like their bits, which is much faster.
    largest = float((half.view(np.uint16) & 0x7FFF).max().view(np.float16))
    if largest * (1 << bits) > LARGEST_FLOAT16:
        return "its scales are so large that biases would not fit float16"
    return None


class GptqWeights(Weights):
    """The weights of a GPTQ checkpoint, without the zero biases that old writers add.

    `read_packed` gives the outputs of gate_proj and up_proj in the input order of down_proj, which
    saves a gather at run time; so either all three are used packed or none.
    """

    quantised = True

    def __init__(self, tensors: Tensors, settings: GptqSettings, config: ModelConfig):
        self._tensors, self._settings = tensors, settings
        self.files = tuple(dict.fromkeys(tensor.path for tensor in tensors.values()))
        self._matrices = self._scan(config)
        self.shapes = self._dense_shapes(config)
        self._zeros_as = self._zero_point_format()
        self.warnings = tuple(self._warnings())
        self._check_orders()
        self._last: dict[str, tuple[Array, Array, Array]] = {}
        self._lock = Lock()  # of _last

    @cached_property
    def unpackable(self) -> Mapping[str, str]:
        return {f"{stem}.weight": m.reason for stem, m in self._matrices.items() if m.reason}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows start to stop, float32 if quantised, inputs in the network's order."""
        stem = _stem(name)
        if stem not in self._matrices:
            return read_floats(self._tensors[name], start, stop)
        matrix = self._matrices[stem]
        return fmt.dequantise(*self._parts(stem), matrix.group_of, matrix.bits, slice(start, stop))

    def packing(self, name: str) -> Packing | None:
        stem = _stem(name)
        if not self._is_packed(stem):
            return None
        matrix = self._matrices[stem]
        size = fmt.mlx_group_size(matrix.group_size)
        assert size is not None
        return Packing(matrix.bits, size, self._input_order(stem) is not None)

    def read_packed(self, name: str) -> Packed:
        """A matrix that has a packing: codes and scales bit for bit."""
        packing, stem = self.packing(name), _stem(name)
        assert packing is not None
        matrix, rows = self._matrices[stem], self._output_order(stem)
        qweight, zeros, wide_scales = self._parts(stem)
        biases, error_steps = fmt.affine_biases(zeros, wide_scales)
        repeats = matrix.group_size // packing.group_size
        codes = fmt.affine_codes(qweight, matrix.bits, matrix.order, rows)
        scales = _by_output(wide_scales.astype(np.float16), repeats, rows)
        biases = _by_output(biases, repeats, rows)
        return Packed(packing, codes, scales, biases, self._input_order(stem), error_steps)

    def _is_packed(self, stem: str) -> bool:
        return stem in self._matrices and self._matrices[stem].reason is None

    def _input_order(self, stem: str) -> Array | None:
        """The order to gather a packed matrix's inputs in; down_proj gets them in order."""
        return None if _leaf(stem) == "down_proj" else self._matrices[stem].order

    def _output_order(self, stem: str) -> Array | None:
        """The order of a packed matrix's outputs, None for the network's."""
        (down,) = _siblings(stem, ["down_proj"])
        folded = _leaf(stem) in GATE_UP and self._is_packed(down)
        return self._matrices[down].order if folded else None

    def _parts(self, stem: str) -> tuple[Array, Array, Array]:
        """Codes, zero points and scales, cached for threads that read blocks of one matrix."""
        with self._lock:
            if stem not in self._last:
                self._last.clear()  # first, so that memory holds one matrix
                qweight, qzeros, scales = (self._tensors[f"{stem}.{part}"] for part in PARTS[:3])
                bits = self._matrices[stem].bits
                zeros = fmt.zero_points(fmt.unpack(qzeros.read(), bits), bits, self._zeros_as)
                self._last[stem] = (qweight.read(), zeros, read_floats(scales))
            return self._last[stem]

    def _scan(self, config: ModelConfig) -> dict[str, Matrix]:
        """Every quantised matrix by its name without `.weight`."""
        stems = [n.removesuffix(".qweight") for n in self._tensors if n.endswith(".qweight")]
        if not stems:
            raise EdgeError(
                f"{self._settings.where} describes GPTQ weights, but no file holds a qweight; "
                f"download the checkpoint again."
            )
        for stem in stems:
            if f"{stem}.weight" in self._tensors:
                raise _bad_tensor(self._tensors, f"{stem}.weight", "is also stored quantised")
        inputs = {_stem(name): s[1] for name, s in expected_shapes(config).items() if len(s) == 2}
        settings = self._settings
        return {s: scan_matrix(self._tensors, s, settings, inputs.get(s)) for s in stems}

    def _dense_shapes(self, config: ModelConfig) -> dict[str, Shape]:
        dropped = self._biases_to_drop(config)
        shapes: dict[str, Shape] = {}
        for name, tensor in self._tensors.items():
            stem, _, kind = name.rpartition(".")
            if kind == "qweight":
                shapes[f"{stem}.weight"] = self._matrices[stem].shape
            elif kind not in PARTS and name not in dropped:
                tensor.check_is_float()
                shapes[name] = tensor.shape
        return shapes

    def _biases_to_drop(self, config: ModelConfig) -> set[str]:
        """Zero biases of quantised matrices that have none in the network."""
        names = [f"{stem}.bias" for stem in self._matrices if f"{stem}.bias" in self._tensors]
        used = [name for name in names if read_floats(self._tensors[name]).any()]
        wanted = set(expected_shapes(config))
        if any(_leaf(name.removesuffix(".bias")) in QKV for name in used):
            wanted |= set(expected_shapes(config.matching(names)))
        if unknown := set(used) - wanted:
            reason = "is a nonzero bias that the network does not have"
            raise _bad_tensor(self._tensors, min(unknown), reason)
        return set(names) - wanted

    def _zero_point_format(self) -> str:
        """The format that symmetric zero points show, as some files have the wrong label."""
        shown = {matrix.zeros_as for matrix in self._matrices.values() if matrix.zeros_as}
        known = self._settings.sym and len(shown) == 1
        return shown.pop() if known else self._settings.checkpoint_format

    def _warnings(self) -> Iterator[str]:
        where, label = self._settings.where, self._settings.checkpoint_format
        if self._settings.sym and any(m.zeros_as != label for m in self._matrices.values()):
            yield (
                f"{where} says that zero points are symmetric and stored as {label!r}, but some "
                f"are not; edge follows the tensors, so check the model's answers."
            )
        in_format_1 = self._zeros_as == fmt.FORMAT_1
        if in_format_1 and any(matrix.zeros_wrap for matrix in self._matrices.values()):
            yield (
                f"{where}: some matrices have a zero point of 0, which programs read differently, "
                f"so results may differ; prefer a symmetric checkpoint or one in 'gptq_v2'."
            )

    def _check_orders(self) -> None:
        """Give a reason to matrices whose input order an artefact cannot store."""
        ordered = [s for s, m in self._matrices.items() if m.order is not None and not m.reason]
        for stem in ordered:
            family = next((f for f in (QKV, GATE_UP) if _leaf(stem) in f), None)
            if family is not None and not self._share_order(_siblings(stem, family)):
                self._matrices[stem].reason = f"{', '.join(family)} do not share an input order"
            elif family is None and _leaf(stem) not in WITH_OWN_ORDER:
                self._matrices[stem].reason = "the network cannot use its input order"
        for stem in ordered:
            if _leaf(stem) == "down_proj":
                self._check_down(stem)

    def _share_order(self, stems: Sequence[str]) -> bool:
        """True if all are packed and have the same order."""
        packed = [self._matrices[stem] for stem in stems if self._is_packed(stem)]
        orders = [matrix.order for matrix in packed if matrix.order is not None]
        same = all(np.array_equal(order, orders[0]) for order in orders)
        return same and len(orders) == len(stems)

    def _check_down(self, stem: str) -> None:
        """The order of down_proj must be applied to the outputs of gate_proj and up_proj."""
        down = self._matrices[stem]
        for before in _siblings(stem, GATE_UP):
            if not self._is_packed(before) or self._matrices[before].shape[0] != down.shape[1]:
                down.reason = "its input order needs gate_proj and up_proj packed too"
            elif f"{before}.bias" in self.shapes:
                down.reason = f"its input order does not allow {before}.bias"


def _stem(name: str) -> str:
    return name.removesuffix(".weight")


def _leaf(stem: str) -> str:
    return stem.rpartition(".")[2]


def _siblings(stem: str, leaves: Sequence[str]) -> list[str]:
    """The matrices of these names in the same block."""
    prefix = stem.rpartition(".")[0]
    return [f"{prefix}.{leaf}" for leaf in leaves]


def _by_output(by_group: Array, repeats: int, rows: Array | None) -> Array:
    """(G, O) in MLX's layout (O, G * repeats), rows in the given order."""
    columns = by_group.T if rows is None else by_group.T[rows]
    return np.ascontiguousarray(np.repeat(columns, repeats, axis=1))

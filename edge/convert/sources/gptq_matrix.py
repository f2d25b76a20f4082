"""One quantised matrix of a GPTQ checkpoint, and what its small tensors tell about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edge.convert.sources.gptq_settings import GptqSettings
from edge.convert.sources.weights import Array
from edge.errors import EdgeError
from edge.formats import gptq as fmt
from edge.formats.safetensors import INTEGERS, SafetensorsFile, TensorEntry

PARTS = ("qweight", "qzeros", "scales", "g_idx")
FLOATS = ("F16", "BF16", "F32", "F64")
LARGEST_FLOAT16 = 65504.0


class Tensors:
    """The tensors of several files by name.

    Raises:
        EdgeError: two files hold a tensor of one name.
    """

    def __init__(self, files: Sequence[SafetensorsFile]):
        self.paths = tuple(file.path for file in files)
        self._file_of: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.entries:
                if name in self._file_of:
                    raise self.wrong(name, f"is in {file.path.name} too")
                self._file_of[name] = file

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def entry(self, name: str) -> TensorEntry:
        """Type and shape of a tensor."""
        return self._file_of[name].entries[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows as stored, but nothing wider than float32 among floats."""
        array = self._file_of[name].read(name, start, stop)
        return array.astype(np.float32) if array.dtype == np.float64 else array

    def wrong(self, name: str, what: str) -> EdgeError:
        """The sentence about a tensor that is not as it must be."""
        path = self._file_of[name].path if name in self._file_of else self.paths[0].parent
        return EdgeError(f"{path}: tensor {name} {what}; download the checkpoint again.")


@dataclass(frozen=True)
class Matrix:
    """What is known of one quantised matrix once its small tensors have been read.

    Attributes:
        bits: of a code.
        shape: (outputs, inputs).
        groups: how many share the inputs among them.
        zeros_as: how its zero points are stored, judged by them alone; None if they do not tell.
        zeros_wrap: a zero point is stored as the largest number, which format 1 leaves unclear.
        group_size: inputs per group, 0 where groups differ.
        order: int32 (inputs,), what brings groups together; None where they are.
        reason: why MLX cannot store it without rounding again, if it cannot.
    """

    bits: int
    shape: tuple[int, int]
    groups: int
    zeros_as: str | None
    zeros_wrap: bool
    group_size: int
    order: Array | None
    reason: str | None = None


def scan_matrix(
    tensors: Tensors, stem: str, settings: GptqSettings, inputs: int | None = None
) -> Matrix:
    """Read all of a matrix but its codes.

    Args:
        tensors: where it is.
        stem: its name without `.qweight`.
        settings: for what its tensors leave open.
        inputs: how many the network gives it, if known.

    Raises:
        EdgeError: a tensor is missing, contradicts another, or holds impossible values.
    """
    bits, shape, groups = _layout(tensors, stem, settings, inputs)
    largest_scale, exact = _judge_scales(tensors, f"{stem}.scales")
    stored_zeros = fmt.unpack(tensors.read(f"{stem}.qzeros"), bits)
    grouping = fmt.in_groups(read_groups(tensors, stem, settings, shape[1], groups), groups)
    group_size, order = grouping or (0, None)
    return Matrix(
        bits=bits,
        shape=shape,
        groups=groups,
        zeros_as=fmt.symmetric_format(stored_zeros, bits),
        zeros_wrap=bool(stored_zeros.max() == (1 << bits) - 1),
        group_size=group_size,
        order=order,
        reason=_why_not(group_size, largest_scale * (1 << bits), exact),
    )


def read_groups(
    tensors: Tensors, stem: str, settings: GptqSettings, inputs: int, groups: int
) -> Array:
    """The group of each input, int (inputs,), each within 0 to groups - 1.

    Raises:
        EdgeError: g_idx names a group that is not there, or there is no g_idx and inputs do
            not divide into groups.
    """
    name = f"{stem}.g_idx"
    stored = tensors.read(name) if name in tensors else None
    # Writers before act-order left g_idx zero: then it says nothing.
    if stored is None or (groups > 1 and not stored.any()):
        return np.arange(inputs) // _size_of_groups(tensors, stem, settings, inputs, groups)
    if stored.min() < 0 or stored.max() >= groups:
        raise tensors.wrong(name, f"names a group outside 0 to {groups - 1}")
    return stored


def _size_of_groups(
    tensors: Tensors, stem: str, settings: GptqSettings, inputs: int, groups: int
) -> int:
    for size in (settings.group_size, inputs // groups):
        if size > 0 and -(-inputs // size) == groups:
            return size
    raise tensors.wrong(f"{stem}.scales", f"has {groups} groups for {inputs} inputs")


def _layout(
    tensors: Tensors, stem: str, settings: GptqSettings, inputs: int | None
) -> tuple[int, tuple[int, int], int]:
    """Bits, (outputs, inputs) and groups, from shapes that must agree."""
    rows, outputs = _part_shape(tensors, stem, "qweight", ("I32",))
    groups, width = _part_shape(tensors, stem, "qzeros", ("I32",))
    scales = _part_shape(tensors, stem, "scales", FLOATS)
    inputs = _inputs_by_g_idx(tensors, f"{stem}.g_idx") or inputs or rows * 32 // settings.bits
    bits = rows * 32 // max(1, inputs)
    if bits not in fmt.BITS or bits * inputs != rows * 32:
        raise tensors.wrong(f"{stem}.qweight", f"has {rows} rows for {inputs} inputs")
    if scales != (groups, outputs):
        raise tensors.wrong(f"{stem}.scales", f"has shape {scales}, not {(groups, outputs)}")
    if width * 32 != outputs * bits:
        raise tensors.wrong(f"{stem}.qzeros", f"has {width} columns for {outputs} outputs")
    return bits, (outputs, inputs), groups


def _inputs_by_g_idx(tensors: Tensors, name: str) -> int | None:
    """How many inputs it has groups for; None if old writers left it out."""
    if name not in tensors:
        return None
    entry = tensors.entry(name)
    if entry.dtype not in INTEGERS or len(entry.shape) != 1 or not entry.shape[0]:
        raise tensors.wrong(name, f"is {entry.dtype} of shape {entry.shape}, not GPTQ's")
    return entry.shape[0]


def _part_shape(tensors: Tensors, stem: str, part: str, dtypes: Sequence[str]) -> tuple[int, int]:
    name = f"{stem}.{part}"
    if name not in tensors:
        raise tensors.wrong(name, f"is missing beside {stem}.qweight")
    entry = tensors.entry(name)
    if entry.dtype not in dtypes or len(entry.shape) != 2 or not math.prod(entry.shape):
        raise tensors.wrong(name, f"is {entry.dtype} of shape {entry.shape}, not GPTQ's")
    return entry.shape[0], entry.shape[1]


def _judge_scales(tensors: Tensors, name: str) -> tuple[float, bool]:
    """The largest magnitude, and whether float16 holds all of them."""
    scales = tensors.read(name)
    if scales.dtype == np.float16:  # magnitudes sort as their bits do, and those much faster
        largest, exact = float((scales.view(np.uint16) & 0x7FFF).max().view(np.float16)), True
    else:
        largest = float(np.abs(scales).max())
        with np.errstate(over="ignore"):
            exact = bool((scales.astype(np.float16) == scales).all())
    if not math.isfinite(largest):
        raise tensors.wrong(name, "holds values that are not finite")
    return largest, exact


def _why_not(group_size: int, largest_bias: float, exact_scales: bool) -> str | None:
    """Why a matrix does not fit MLX's affine form by itself."""
    if not group_size:
        return "its groups have different sizes"
    if fmt.mlx_group_size(group_size) is None:
        return f"its groups of {group_size} inputs do not divide into MLX's 32, 64 or 128"
    if not exact_scales:
        return "its scales do not fit float16"
    if largest_bias > LARGEST_FLOAT16:
        return "its scales are so large that biases would not fit float16"
    return None

"""One quantised matrix of a GPTQ checkpoint, and what its small tensors tell about it."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from edge.errors import EdgeError
from edge.formats import gptq as fmt
from edge.formats.safetensors import FLOATS, INTEGERS, Array, StoredTensor

PARTS = ("qweight", "qzeros", "scales", "g_idx")
LARGEST_FLOAT16 = 65504.0
Tensors = Mapping[str, StoredTensor]


class GptqSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint's words about its quantisation; `where` names the file that holds them."""

    where: str
    bits: Literal[2, 3, 4, 8]  # of a code, where no override says otherwise
    group_size: Annotated[int, msgspec.Meta(ge=-1, lt=1 << 31)] = -1  # -1: all inputs
    sym: bool = True  # zero points all lie in the middle of the range
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


@dataclass(frozen=True)
class Matrix:
    """One quantised matrix once its small tensors have been read."""

    bits: int
    shape: tuple[int, int]  # outputs, inputs
    groups: int
    zeros_as: str | None  # how its zero points are stored, if they tell
    zeros_wrap: bool  # a zero point is stored as the largest number: unclear in format 1
    group_size: int  # 0 where groups differ
    order: Array | None  # int32 (inputs,), what brings groups together; None where they are
    reason: str | None = None  # why MLX cannot store it without rounding again, if it cannot


def scan_matrix(tensors: Tensors, stem: str, settings: GptqSettings, inputs: int | None) -> Matrix:
    """Read all of a matrix but its codes; `inputs` are how many the network gives it, if known."""
    bits, shape, groups = _layout(tensors, stem, settings, inputs)
    scales = read_floats(tensors[f"{stem}.scales"])
    if not np.isfinite(scales).all():
        raise wrong(tensors, f"{stem}.scales", "holds values that are not finite")
    zeros = fmt.unpack(tensors[f"{stem}.qzeros"].read(), bits)
    group_of = read_groups(tensors, stem, settings, shape[1], groups)
    group_size, order = fmt.in_groups(group_of, groups) or (0, None)
    return Matrix(
        bits=bits,
        shape=shape,
        groups=groups,
        zeros_as=fmt.symmetric_format(zeros, bits),
        zeros_wrap=bool(zeros.max() == (1 << bits) - 1),
        group_size=group_size,
        order=order,
        reason=_why_not(group_size, bits, scales),
    )


def read_groups(
    tensors: Tensors, stem: str, settings: GptqSettings, inputs: int, groups: int
) -> Array:
    """The group of each input, int (inputs,), each within 0 to groups - 1."""
    name = f"{stem}.g_idx"
    stored = tensors[name].read() if name in tensors else None
    if stored is not None and (groups == 1 or stored.any()):
        if stored.min() < 0 or stored.max() >= groups:
            raise wrong(tensors, name, f"names a group outside 0 to {groups - 1}")
        return stored
    # Writers before act-order left g_idx zero: then it says nothing.
    for size in (settings.group_size, inputs // groups):
        if size > 0 and -(-inputs // size) == groups:
            return np.arange(inputs) // size
    raise wrong(tensors, f"{stem}.scales", f"has {groups} groups for {inputs} inputs")


def read_floats(tensor: StoredTensor, start: int = 0, stop: int | None = None) -> Array:
    """Rows as stored, but nothing wider than float32."""
    array = tensor.read(start, stop)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def wrong(tensors: Tensors, name: str, reason: str) -> EdgeError:
    """The sentence about a tensor that is not as it must be."""
    path = tensors[name].path if name in tensors else next(iter(tensors.values())).path.parent
    return EdgeError(f"{path}: tensor {name} {reason}; download the checkpoint again.")


def _layout(
    tensors: Tensors, stem: str, settings: GptqSettings, inputs: int | None
) -> tuple[int, tuple[int, int], int]:
    """Bits, (outputs, inputs) and groups, from shapes that must agree."""
    rows, outputs = _part_shape(tensors, f"{stem}.qweight", ("I32",), 2)
    groups, width = _part_shape(tensors, f"{stem}.qzeros", ("I32",), 2)
    scales = _part_shape(tensors, f"{stem}.scales", FLOATS, 2)
    if f"{stem}.g_idx" in tensors:
        (inputs,) = _part_shape(tensors, f"{stem}.g_idx", INTEGERS, 1)
    inputs = inputs or rows * 32 // settings.bits
    bits = rows * 32 // max(1, inputs)
    if bits not in fmt.BITS or bits * inputs != rows * 32:
        raise wrong(tensors, f"{stem}.qweight", f"has {rows} rows for {inputs} inputs")
    if scales != (groups, outputs):
        raise wrong(tensors, f"{stem}.scales", f"has shape {scales}, not {(groups, outputs)}")
    if width * 32 != outputs * bits:
        raise wrong(tensors, f"{stem}.qzeros", f"has {width} columns for {outputs} outputs")
    return bits, (outputs, inputs), groups


def _part_shape(tensors: Tensors, name: str, dtypes: Container[str], axes: int) -> tuple[int, ...]:
    if name not in tensors:
        raise wrong(tensors, name, "is missing beside its qweight")
    dtype, shape = tensors[name].dtype, tensors[name].shape
    if dtype not in dtypes or len(shape) != axes or not math.prod(shape):
        raise wrong(tensors, name, f"is {dtype} of shape {shape}, not GPTQ's")
    return shape


def _why_not(group_size: int, bits: int, scales: Array) -> str | None:
    """Why a matrix does not fit MLX's affine form by itself."""
    if not group_size:
        return "its groups have different sizes"
    if fmt.mlx_group_size(group_size) is None:
        return f"its groups of {group_size} inputs do not divide into MLX's 32, 64 or 128"
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if scales.dtype != np.float16 and (half != scales).any():
        return "its scales do not fit float16"
    # Magnitudes sort as their bits do, and those much faster.
    largest = float((half.view(np.uint16) & 0x7FFF).max().view(np.float16))
    if largest * (1 << bits) > LARGEST_FLOAT16:
        return "its scales are so large that biases would not fit float16"
    return None

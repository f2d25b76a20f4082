"""A StableLM in one GGUF file as a source of weights, under Hugging Face's names.

Only the rows asked for are read, with plain reads: pages of a memory map count as
ours, and a map of a whole model looks like a leak. llama.cpp's older 4, 5 and 8 bit
types are affine in groups of 32, so MLX can hold the very same weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edge.convert.sources.gguf_blocks import LAYOUTS, pack_codes, read_scales
from edge.convert.sources.gguf_network import (
    ROPE_BASE_KEY,
    TENSOR_NAME,
    check_is_whole_stablelm,
    read_network,
)
from edge.convert.sources.gguf_tokenizer import rebuild_tokenizer
from edge.convert.sources.weights import Array, Opened, Packed, Packing, Shape
from edge.errors import EdgeError
from edge.formats.gguf import GgufFile, GgufTensor, block_size, read_gguf

# llama.cpp's name of each part of the network, outside and inside a layer.
OUTER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# One tensor (heads, head_dim) where Hugging Face has one tensor a head.
STACKED_NAMES = {"attn_q_norm": "self_attn.q_layernorm", "attn_k_norm": "self_attn.k_layernorm"}
MAX_HEADS = 4096
# What gguf.quants decodes and what a network may be stored in.
FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
UNROUNDED = ("F32", "F16", "BF16")
DECODED = (
    *("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4"),
)
DECODE_ITEMS = 1 << 20


def open_gguf(path: Path) -> Opened:
    """Open a file made by edge, by llama.cpp's tools or by anybody.

    Raises:
        EdgeError: it is broken, not a StableLM, one part of several, or holds a tokenizer or
            a tensor type that cannot be used.
    """
    file = read_gguf(path)
    check_is_whole_stablelm(file)
    weights = GgufWeights(file)
    config = read_network(file)
    tokenizer = rebuild_tokenizer(file.keys, config, str(path))
    title = file.keys.get("general.name")
    return Opened(
        config=config,
        weights=weights,
        companions=tokenizer.files,
        warnings=(*_rounding_warning(file), *tokenizer.warnings),
        title=title if isinstance(title, str) else None,
    )


def has_rope_base(path: Path) -> bool:
    """Whether the file gives its rotary base; llama.cpp takes 10000 where it does not.

    Its own converter leaves the key out, which is wrong for Stable Code (1000000).

    Raises:
        EdgeError: the file is broken.
    """
    return ROPE_BASE_KEY in read_gguf(path).keys


class GgufWeights:
    """The tensors of one file.

    Raises:
        EdgeError: a tensor is not part of a StableLM, or its type cannot be decoded.
    """

    def __init__(self, file: GgufFile):
        self._file = file
        self._parts = dict(part for tensor in file.tensors for part in _parts(tensor, file.path))
        self._packings: dict[str, Packing | None] = {}

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape by Hugging Face name."""
        return {name: part.shape for name, part in self._parts.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self._file.path,)

    @property
    def quantised(self) -> bool:
        """Whether any tensor was rounded to a few bits."""
        return any(tensor.kind not in UNROUNDED for tensor in self._file.tensors)

    @cached_property
    def unpackable(self) -> Mapping[str, str]:
        """Why a quantised matrix has no packing, by name."""
        return {
            name: _why_not(part.tensor.kind)
            for name, part in self._parts.items()
            if part.tensor.kind not in UNROUNDED and self.packing(name) is None
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows start to stop: float16 where stored so, else float32."""
        part = self._parts[name]
        if len(part.shape) == 1:
            row = self._decode(part, 0, 1).reshape(part.shape)
            return row[start:stop]
        start, stop, _ = slice(start, stop).indices(part.shape[0])
        return self._decode(part, start, max(start, stop)).reshape(-1, *part.shape[1:])

    def packing(self, name: str) -> Packing | None:
        """4, 5 or 8 bits in groups of 32 where float16 holds every scale and bias exactly.

        Reads the whole tensor once to know.
        """
        if name not in self._packings:
            self._packings[name] = self._find_packing(self._parts[name])
        return self._packings[name]

    def read_packed(self, name: str) -> Packed:
        """The very codes of the file, rearranged."""
        packing, part = self.packing(name), self._parts[name]
        if packing is None:
            raise EdgeError(f"{self._file.path}: {name} has no exact form in MLX; convert it.")
        layout = LAYOUTS[part.tensor.kind]
        columns = part.shape[1]
        codes = np.empty((part.rows, columns * layout.bits // 32), np.uint32)
        scales = np.empty((part.rows, columns // layout.group_size), np.float16)
        biases = np.empty_like(scales)
        done = 0
        for raw in self._pieces(part, 0, part.rows):
            rows = slice(done, done := done + len(raw))
            codes[rows] = pack_codes(layout, raw)
            scales[rows], biases[rows] = read_scales(layout, raw)
        return Packed(packing, codes, scales, biases)

    def _find_packing(self, part: _Part) -> Packing | None:
        layout = LAYOUTS.get(part.tensor.kind)
        if layout is None or len(part.shape) != 2:
            return None
        for raw in self._pieces(part, 0, part.rows):
            if not all(np.isfinite(numbers).all() for numbers in read_scales(layout, raw)):
                return None
        return Packing(layout.bits, layout.group_size)

    def _decode(self, part: _Part, start: int, stop: int) -> Array:
        """Rows as (stop - start, row items)."""
        kind = part.tensor.kind
        dtype = FLOATS.get(kind, FLOATS["F32"])
        out: Array = np.empty((stop - start, part.row_items), dtype)
        done = 0
        for raw in self._pieces(part, start, stop):
            out[done : done + len(raw)] = _decode_rows(raw, kind)
            done += len(raw)
        return out

    def _pieces(self, part: _Part, start: int, stop: int) -> Iterator[Array]:
        """Rows as stored, uint8 (some rows, row bytes), a few megabytes at a time."""
        step = max(1, DECODE_ITEMS // part.row_items)
        for row in range(start, stop, step):
            rows = min(step, stop - row)
            yield self._read_bytes(part, row, rows).reshape(rows, part.row_bytes)

    def _read_bytes(self, part: _Part, row: int, rows: int) -> Array:
        offset, count = part.begin + row * part.row_bytes, rows * part.row_bytes
        try:
            raw = np.fromfile(self._file.path, np.uint8, count, offset=offset)
        except OSError as error:
            raise EdgeError(
                f"{self._file.path} cannot be read ({error.strerror}); check the disk."
            ) from None
        if len(raw) < count:
            raise EdgeError(f"{self._file.path} has become shorter; download it again.")
        return raw


@dataclass(frozen=True)
class _Part:
    """A tensor of the file, or one row of a stacked one, as Hugging Face has it."""

    tensor: GgufTensor
    shape: Shape
    begin: int

    @property
    def rows(self) -> int:
        return 1 if len(self.shape) == 1 else self.shape[0]

    @property
    def row_items(self) -> int:
        """Items that are contiguous: a row, or all of a vector."""
        return math.prod(self.shape) // self.rows

    @cached_property
    def row_bytes(self) -> int:
        items, data_bytes = block_size(self.tensor.kind)
        return self.row_items // items * data_bytes


def _parts(tensor: GgufTensor, path: Path) -> Iterator[tuple[str, _Part]]:
    """Hugging Face's names for a tensor, with what lies under them."""
    match = TENSOR_NAME.fullmatch(tensor.name)
    layer, stem, kind = match.groups() if match else (None, "", "")
    if tensor.kind not in FLOATS and tensor.kind not in DECODED:
        raise EdgeError(
            f"{path}: tensor {tensor.name} is stored as {tensor.kind}, which edge cannot "
            f"decode; choose a file of another quantisation."
        )
    if layer is None and stem in OUTER_NAMES:
        yield f"{OUTER_NAMES[stem]}.{kind}", _Part(tensor, tensor.shape, tensor.begin)
    elif layer is not None and stem in LAYER_NAMES:
        name = f"model.layers.{layer}.{LAYER_NAMES[stem]}.{kind}"
        yield name, _Part(tensor, tensor.shape, tensor.begin)
    elif layer is not None and stem in STACKED_NAMES and kind == "weight":
        yield from _stacked(tensor, f"model.layers.{layer}.{STACKED_NAMES[stem]}", path)
    else:
        raise EdgeError(
            f"{path}: tensor {tensor.name} is not part of a StableLM; choose another file."
        )


def _stacked(tensor: GgufTensor, prefix: str, path: Path) -> Iterator[tuple[str, _Part]]:
    heads, width = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    if heads > MAX_HEADS:
        raise EdgeError(
            f"{path}: tensor {tensor.name} has {heads} heads, which no model has; "
            f"download it again."
        )
    for head in range(heads):
        begin = tensor.begin + head * (tensor.data_bytes // heads)
        yield f"{prefix}.norms.{head}.weight", _Part(tensor, (width,), begin)


def _decode_rows(raw: Array, kind: str) -> Array:
    """Stored rows uint8 (rows, bytes) as floats (rows, items)."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    if kind in FLOATS:
        values: Array = raw.view(FLOATS[kind])
        return values
    with np.errstate(all="ignore"):  # a broken scale makes NaN, which the writers refuse
        values = dequantize(raw, GGMLQuantizationType[kind])
    return values


def _why_not(kind: str) -> str:
    if kind in LAYOUTS:
        return "its scales are so large that biases would not fit float16"
    return f"MLX has no form for {kind}"


def _rounding_warning(file: GgufFile) -> Iterator[str]:
    kinds = sorted({tensor.kind for tensor in file.tensors}.difference(UNROUNDED))
    if kinds:
        yield (
            f"{file.path.name} holds weights already rounded to {', '.join(kinds)}; whatever is "
            f"made of it keeps that rounding."
        )

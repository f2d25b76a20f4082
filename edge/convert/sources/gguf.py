"""A StableLM or Llama in one GGUF file as a source of weights.

llama.cpp's older 4, 5 and 8 bit types are affine in groups of 32, so MLX can store the same
weights exactly. A block holds 32 weights: a float16 scale d, for some types a float16 minimum m,
and the codes q (ggml's ggml-common.h). Q8_0 is d*q with signed q, Q4_0 and Q5_0 are d*(q - 8) and
d*(q - 16), Q4_1 and Q5_1 are d*q + m. MLX has scale*code + bias. A bias of -8, -16 or -128 scales
is exact in float16 unless it overflows, since the factor is a power of two.

llama.cpp rotates neighbouring pairs of a Llama's head, so its files have the rows of q and k in
another order than Hugging Face's, which rotates halves; a StableLM's are as they were.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from edge.convert.sources.gguf_config import (
    ARCHITECTURES,
    ROPE_FACTORS,
    read_gguf_config,
    rope_base_key,
)
from edge.convert.sources.gguf_tokenizer import rebuild_tokenizer
from edge.convert.sources.weights import Opened, Packed, Packing, Weights
from edge.errors import EdgeError
from edge.formats.gguf import GgufFile, GgufTensor, block_size, read_model
from edge.formats.safetensors import Array, read_array

# llama.cpp's names of parts of the network by Hugging Face's, outside and inside a layer.
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER_PARTS, LAYER_PARTS = ({g: h for h, g in names.items()} for names in (NAMES, LAYER_NAMES))
# One tensor (heads, head_dim) where Hugging Face has one tensor per head.
STACKED = re.compile(r"blk\.\d+\.attn_[qk]_norm\.weight")
TENSOR_NAME = re.compile(r"(?:blk\.(0|[1-9]\d{0,4})\.)?(\w+)\.(weight|bias)")
MAX_HEADS = 4096
FLOATS = {"F32": "<f4", "F16": "<f2"}
UNROUNDED = ("F32", "F16", "BF16")
DECODED = (  # by gguf.quants
    *("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4"),
)
DECODE_ITEMS = 1 << 20
BLOCK_ITEMS = 32


def open_gguf(path: Path) -> Opened:
    """Read and check a file's header, network and tokenizer."""
    file = read_model(path)
    check_is_supported(file)
    config = read_gguf_config(file, _rope_factors(file))
    weights = GgufWeights(file, config.head_dim if config.model_type == "llama" else 0)
    tokenizer = rebuild_tokenizer(file.keys, config, str(path))
    warnings = list(tokenizer.warnings)
    title = file.keys.get("general.name")
    if kinds := sorted({tensor.kind for tensor in file.tensors}.difference(UNROUNDED)):
        rounded = f"the weights of {path.name} are already rounded to {', '.join(kinds)}"
        warnings.insert(0, f"{rounded}; artefacts made from it keep that rounding.")
    return Opened(
        tokenizer.config,
        weights,
        tokenizer.files,
        tuple(warnings),
        title=title if isinstance(title, str) else None,
        gives_rope_base=rope_base_key(config.model_type) in file.keys,
    )


def check_is_supported(file: GgufFile, architectures: Sequence[str] = ARCHITECTURES) -> None:
    """An EdgeError for other networks."""
    architecture = file.keys.get("general.architecture")
    if architecture not in architectures:
        raise EdgeError(
            f"{file.path} holds a {architecture!r} model, which edge does not convert; choose a "
            f"GGUF file of {' or '.join(map(repr, architectures))}, or run this one as it is."
        )


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face tensor; the norms of all heads share one."""
    stem, part = name.rsplit(".", 1)
    if stem in NAMES:
        return f"{NAMES[stem]}.{part}"
    _, _, layer, path = stem.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[path.split('.norms.')[0]]}.{part}"


def has_paired_rows(name: str) -> bool:
    """Whether a Llama's tensor has its rows in llama.cpp's order in a GGUF file."""
    return name.rsplit(".", 2)[1] in ("q_proj", "k_proj")


def paired_rows(rows: int, head_dim: int) -> Array:
    """The file's row of each of Hugging Face's rows of q or k, (rows,)."""
    heads = np.arange(rows).reshape(-1, head_dim // 2, 2)
    return heads.swapaxes(1, 2).reshape(rows)


class GgufWeights(Weights):
    """The tensors of a model in one file or several; `head_dim` of one with paired rows, else 0."""

    def __init__(self, file: GgufFile, head_dim: int = 0):
        self.files = tuple(dict.fromkeys(tensor.path for tensor in file.tensors))
        weights = (tensor for tensor in file.tensors if tensor.name != ROPE_FACTORS)
        found = [part for tensor in weights for part in _parts(tensor)]
        self._head_dim = head_dim
        self._parts = {part.name: part for part in found}
        self._packings: dict[str, Packing | None] = {}
        self.shapes = {part.name: part.shape for part in found}
        self.quantised = any(tensor.kind not in UNROUNDED for tensor in file.tensors)

    @cached_property
    def unpackable(self) -> Mapping[str, str]:
        return {
            name: "its scales are so large that biases would not fit float16"
            if part.kind in LAYOUTS
            else f"MLX has no form for {part.kind}"
            for name, part in self._parts.items()
            if part.kind not in UNROUNDED and self.packing(name) is None
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows start to stop, float16 if stored so, else float32."""
        part = self._parts[name]
        start, stop, _ = slice(start, stop).indices(part.shape[0])
        stop = max(start, stop)
        if len(part.shape) == 1:
            whole: Array = self._decode(part, 0, 1)[0]
            return (
                whole[self._rows(name)][start:stop] if self._is_paired(name) else whole[start:stop]
            )
        if self._is_paired(name):  # whole heads hold the rows
            first, last = start // self._head_dim, math.ceil(stop / self._head_dim)
            heads = self._decode(part, first * self._head_dim, last * self._head_dim)
            rows = self._rows(name)[start:stop] - first * self._head_dim
            return np.ascontiguousarray(heads[rows])
        return self._decode(part, start, stop).reshape(-1, *part.shape[1:])

    def _is_paired(self, name: str) -> bool:
        return self._head_dim > 0 and has_paired_rows(name)

    def _rows(self, name: str) -> Array:
        return paired_rows(self._parts[name].shape[0], self._head_dim)

    def packing(self, name: str) -> Packing | None:
        """4, 5 or 8 bits in groups of 32, if float16 holds every bias; reads the tensor once."""
        if name not in self._packings:
            part = self._parts[name]
            layout = LAYOUTS.get(part.kind) if len(part.shape) == 2 else None
            fits = layout is not None and all(
                np.isfinite(_read_scales(layout, raw)).all()
                for raw in self._pieces(part, 0, part.shape[0])
            )
            self._packings[name] = Packing(layout.bits, BLOCK_ITEMS) if layout and fits else None
        return self._packings[name]

    def read_packed(self, name: str) -> Packed:
        packing, part = self.packing(name), self._parts[name]
        assert packing is not None
        layout, (rows, columns) = LAYOUTS[part.kind], part.shape
        codes, done = np.empty((rows, columns * layout.bits // 32), np.uint32), 0
        scales, biases = np.empty((2, rows, columns // BLOCK_ITEMS), np.float16)
        for raw in self._pieces(part, 0, rows):
            piece = slice(done, done := done + len(raw))
            codes[piece] = _pack_codes(layout, raw)
            scales[piece], biases[piece] = _read_scales(layout, raw)
        if self._is_paired(name):
            order = self._rows(name)
            codes, scales, biases = codes[order], scales[order], biases[order]
        return Packed(packing, codes, scales, biases)

    def _decode(self, part: GgufTensor, start: int, stop: int) -> Array:
        out, done = np.empty((stop - start, _row_items(part)), FLOATS.get(part.kind, "<f4")), 0
        for raw in self._pieces(part, start, stop):
            out[done : done + len(raw)] = _decode_rows(raw, part.kind)
            done += len(raw)
        return out

    def _pieces(self, part: GgufTensor, start: int, stop: int) -> Iterator[Array]:
        """Rows as stored, uint8 (rows, row bytes), a few megabytes at a time."""
        items, block_bytes = block_size(part.kind)
        row_bytes = _row_items(part) // items * block_bytes
        step = max(1, DECODE_ITEMS // _row_items(part))
        for row in range(start, stop, step):
            rows, begin = min(step, stop - row), part.begin + row * row_bytes
            yield read_array(part.path, "u1", rows * row_bytes, begin).reshape(rows, row_bytes)


def _rope_factors(file: GgufFile) -> Array | None:
    """Divisors of the frequencies, float32 (rotated dims / 2,), if the file has them."""
    for tensor in file.tensors:
        if tensor.name == ROPE_FACTORS and len(tensor.shape) == 1 and tensor.kind == "F32":
            return read_array(tensor.path, FLOATS["F32"], tensor.shape[0], tensor.begin)
    return None


def _row_items(part: GgufTensor) -> int:
    """Items of a row; a vector is one row."""
    return math.prod(part.shape[1:] or part.shape)


def _parts(tensor: GgufTensor) -> Iterator[GgufTensor]:
    """The tensors under Hugging Face's names that one of the file holds."""
    match = TENSOR_NAME.fullmatch(tensor.name)
    layer, stem, kind = match.groups() if match else (None, "", "")
    known = OUTER_PARTS if layer is None else LAYER_PARTS
    if stem not in known:
        raise _unusable(tensor, "is not part of a StableLM or Llama")
    if tensor.kind not in FLOATS and tensor.kind not in DECODED:
        raise _unusable(tensor, f"is stored as {tensor.kind}, which edge cannot decode")
    prefix = "" if layer is None else f"model.layers.{layer}."
    if not STACKED.fullmatch(tensor.name):
        yield replace(tensor, name=f"{prefix}{known[stem]}.{kind}")
        return
    heads, width = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    if heads > MAX_HEADS:
        raise _unusable(tensor, f"has {heads} heads, more than any model")
    size = tensor.data_bytes // heads
    for head in range(heads):
        name, begin = f"{prefix}{known[stem]}.norms.{head}.weight", tensor.begin + head * size
        yield GgufTensor(name, tensor.kind, (width,), begin, size, tensor.path)


def _unusable(tensor: GgufTensor, reason: str) -> EdgeError:
    return EdgeError(f"{tensor.path}: tensor {tensor.name} {reason}; choose another file.")


def _decode_rows(raw: Array, kind: str) -> Array:
    """Stored rows uint8 (rows, bytes) as floats (rows, items)."""
    from gguf import GGMLQuantizationType  # here: the package takes half a second to load
    from gguf.quants import dequantize

    if kind in FLOATS:
        return raw.view(FLOATS[kind])
    with np.errstate(all="ignore"):  # a damaged scale makes NaN, which the writers refuse
        return np.asarray(dequantize(raw, GGMLQuantizationType[kind]))


class _Layout:
    """One affine type: bits per code, and the code of zero (None if a minimum is stored)."""

    def __init__(self, bits: int, zero_code: int | None = None):
        self.bits, self.zero_code = bits, zero_code
        self.head_bytes = 2 if zero_code is not None else 4

    def blocks(self, raw: Array) -> Array:
        """Rows (rows, row bytes) as (rows, blocks, block bytes)."""
        return raw.reshape(len(raw), -1, self.head_bytes + BLOCK_ITEMS * self.bits // 8)


LAYOUTS = {"Q8_0": _Layout(8, 128), "Q5_0": _Layout(5, 16), "Q4_0": _Layout(4, 8)}
LAYOUTS |= {"Q5_1": _Layout(5), "Q4_1": _Layout(4)}


def _read_scales(layout: _Layout, raw: Array) -> tuple[Array, Array]:
    """Scales and biases, float16 (rows, blocks) both; a bias that overflows is infinite."""
    head = np.ascontiguousarray(layout.blocks(raw)[..., : layout.head_bytes]).view("<f2")
    scales = np.ascontiguousarray(head[..., 0])
    if layout.zero_code is None:
        return scales, np.ascontiguousarray(head[..., 1])
    with np.errstate(over="ignore", invalid="ignore"):
        return scales, scales * np.float16(-layout.zero_code)


def _pack_codes(layout: _Layout, raw: Array) -> Array:
    """The codes in MLX's layout, uint32 (rows, items * bits / 32)."""
    blocks = layout.blocks(raw)[..., layout.head_bytes :]
    if layout.bits == 8:
        stream = blocks ^ np.uint8(0x80)  # signed to offset by 128
    elif layout.bits == 4:
        codes = _nibbles(blocks)
        stream = codes[..., 0::2] | codes[..., 1::2] << 4
    else:
        high = np.unpackbits(blocks[..., :4], axis=-1, bitorder="little")
        codes = _nibbles(blocks[..., 4:]) | high << 4
        bits = np.unpackbits(codes[..., None], axis=-1, count=5, bitorder="little")
        stream = np.packbits(bits.reshape(len(raw), -1), axis=-1, bitorder="little")
    return np.ascontiguousarray(stream).reshape(len(raw), -1).view("<u4")


def _nibbles(stored: Array) -> Array:
    """Bytes (..., 16) as codes (..., 32): the low halves, then the high."""
    return np.concatenate([stored & 15, stored >> 4], axis=-1)

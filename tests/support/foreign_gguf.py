"""GGUF files written with the gguf package."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import quantize

TINY_KEYS = {
    "context_length": 64,
    "embedding_length": 64,
    "block_count": 1,
    "feed_forward_length": 96,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "rope.dimension_count": 8,
    "attention.layer_norm_epsilon": 1e-5,
}
TINY_SHAPES = {
    "token_embd.weight": (12, 64),
    "output.weight": (12, 64),
    **{f"output_norm.{part}": (64,) for part in ("weight", "bias")},
    **{f"blk.0.{n}_norm.{part}": (64,) for n in ("attn", "ffn") for part in ("weight", "bias")},
    **{f"blk.0.attn_{n}.weight": (64, 64) for n in ("q", "output")},
    **{f"blk.0.attn_{n}.weight": (32, 64) for n in ("k", "v")},
    **{f"blk.0.ffn_{n}.weight": (96, 64) for n in ("gate", "up")},
    "blk.0.ffn_down.weight": (64, 96),
}
# A byte-level tokenizer of twelve tokens.
TINY_TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "olmo",
    "tokenizer.ggml.tokens": [
        *("<|endoftext|>", "a", "b", "ab", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        *("  ", "Ġ", "<|im_end|>", "[PAD10]", "[PAD11]"),
    ],
    "tokenizer.ggml.token_type": [3, 1, 1, 1, 3, 3, 1, 4, 1, 3, 5, 4],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.bos_token_id": 0,
}
MATRIX_KINDS = (Kind.Q8_0, Kind.Q4_0, Kind.F16, Kind.Q5_1)


def write_tiny(
    path: Path, keys: dict | None = None, tensors: dict | None = None, scale: float = 1.0
) -> Path:
    """One layer, its matrices of several types; a value of None omits a key or tensor."""
    rng = np.random.default_rng(0)
    all_keys = {f"stablelm.{name}": value for name, value in TINY_KEYS.items()}
    all_keys |= TINY_TOKENIZER | (keys or {})
    writer = GGUFWriter(str(path), all_keys.pop("general.architecture", "stablelm"))
    for key, value in all_keys.items():
        if value is not None:
            add_key(writer, key, value)
    for i, (name, shape) in enumerate((TINY_SHAPES | (tensors or {})).items()):
        if shape is None:
            continue
        kind = MATRIX_KINDS[i % 4] if len(shape) == 2 and shape[-1] % 32 == 0 else Kind.F32
        values = (scale * rng.standard_normal(shape)).astype(np.float32)
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    finish(writer)
    return path


def add_key(writer: GGUFWriter, key: str, value) -> None:
    """A key of the type that llama.cpp's tools use."""
    adders = {list: writer.add_array, bool: writer.add_bool, str: writer.add_string}
    adders |= {float: writer.add_float32, int: writer.add_uint32, bytes: writer.add_string}
    adders[type(value)](key, value)


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rewritten(source: Path, target: Path, changes: dict) -> Path:
    """A copy with keys changed, or omitted where the value is None."""
    reader, changed = GGUFReader(str(source)), dict(changes)
    writer = GGUFWriter(str(target), "stablelm")
    if "general.alignment" in changed:
        writer.add_custom_alignment(changed.pop("general.alignment"))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in changed:
            continue
        nested = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], nested)
    for key, value in changed.items():
        if value is not None:
            add_key(writer, key, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    finish(writer)
    return target

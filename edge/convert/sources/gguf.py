"""A StableLM in one GGUF file as a source: its network as keys and tensors describe it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from edge.convert.sources.gguf_tokenizer import rebuild_tokenizer
from edge.convert.sources.gguf_weights import TENSOR_NAME, UNROUNDED, GgufWeights
from edge.convert.sources.weights import Opened
from edge.errors import EdgeError
from edge.formats.gguf import GgufFile, Value, read_gguf
from edge.model.config import DEFAULT_ROPE_THETA, ModelConfig

ARCHITECTURE = "stablelm"
ROPE_BASE_KEY = "stablelm.rope.freq_base"


def open_gguf(path: Path) -> Opened:
    """Open a file made by edge, by llama.cpp's tools or by anybody.

    Raises:
        EdgeError: it is broken, not a StableLM, one part of several, or holds a tokenizer or
            a tensor type that cannot be used.
    """
    file = read_gguf(path)
    check_is_whole_stablelm(file)
    weights = GgufWeights(file)
    config = _read_network(file)
    companions, warnings = rebuild_tokenizer(file.keys, config, str(path))
    title = file.keys.get("general.name")
    if kinds := sorted({tensor.kind for tensor in file.tensors}.difference(UNROUNDED)):
        warnings.insert(
            0,
            f"{path.name} holds weights already rounded to {', '.join(kinds)}; whatever is "
            f"made of it keeps that rounding.",
        )
    return Opened(
        config=config,
        weights=weights,
        companions=companions,
        warnings=tuple(warnings),
        title=title if isinstance(title, str) else None,
        gives_rope_base=ROPE_BASE_KEY in file.keys,
    )


def check_is_whole_stablelm(file: GgufFile) -> None:
    """Refuse other networks and parts of split files."""
    architecture = file.keys.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise EdgeError(
            f"{file.path} holds a {architecture!r} model; edge runs {ARCHITECTURE!r}, so choose "
            f"a GGUF file of the StableLM family."
        )
    parts = file.keys.get("split.count", 1)
    if parts not in (0, 1):
        raise EdgeError(
            f"{file.path} is one of {parts} parts of a split model; join them with "
            f"'llama-gguf-split --merge' first."
        )


def _read_network(file: GgufFile) -> ModelConfig:
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    if "token_embd.weight" not in shapes:
        raise EdgeError(f"{file.path} has no token_embd.weight; choose another file.")
    for name in ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"):
        if file.keys.get(f"{ARCHITECTURE}.{name}", "none") not in ("none", 1.0):
            raise EdgeError(
                f"{file.path} scales its rotary positions ({name} {_key(file, name)!r}), which "
                f"edge does not; choose the model at its trained context."
            )
    hidden, heads = _key(file, "embedding_length"), _key(file, "attention.head_count")
    raw = {
        "model_type": ARCHITECTURE,
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": hidden,
        "intermediate_size": _key(file, "feed_forward_length"),
        "num_hidden_layers": _layers(file),
        "num_attention_heads": heads,
        "num_key_value_heads": file.keys.get(f"{ARCHITECTURE}.attention.head_count_kv", heads),
        "max_position_embeddings": _key(file, "context_length"),
        "rope_theta": _shortest(file.keys.get(ROPE_BASE_KEY, DEFAULT_ROPE_THETA)),
        "layer_norm_eps": _shortest(_key(file, "attention.layer_norm_epsilon")),
        "partial_rotary_factor": _rotary_factor(file, hidden, heads),
        # llama.cpp too goes by the tensors; its converter writes the last one wrongly at times.
        "use_qkv_bias": any(name.endswith(".attn_q.bias") for name in shapes),
        "qk_layernorm": any(name.endswith(".attn_q_norm.weight") for name in shapes),
        "use_parallel_residual": not any(name.endswith(".ffn_norm.weight") for name in shapes),
        "bos_token_id": file.keys.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.keys.get("tokenizer.ggml.eos_token_id"),
    }
    return ModelConfig.from_dict(raw, str(file.path))


def _key(file: GgufFile, name: str) -> Any:
    key = f"{ARCHITECTURE}.{name}"
    if key not in file.keys:
        raise EdgeError(f"{file.path} has no key {key}; download it again or choose another file.")
    return file.keys[key]


def _layers(file: GgufFile) -> Value:
    """block_count, once the tensors agree: everything later loops over it."""
    claimed: Value = _key(file, "block_count")
    matches = [TENSOR_NAME.fullmatch(tensor.name) for tensor in file.tensors]
    found = len({match[1] for match in matches if match and match[1]})
    if claimed != found:
        raise EdgeError(
            f"{file.path} claims {claimed} layers and holds {found}; download it again."
        )
    return claimed


def _rotary_factor(file: GgufFile, hidden: Any, heads: Any) -> Any:
    """The factor that gives exactly the rotated dims of the file when multiplied and cut.

    Where the key is absent llama.cpp rotates the whole head.
    """
    dims: Any = file.keys.get(f"{ARCHITECTURE}.rope.dimension_count")
    if dims is None:
        return 1.0
    if not all(type(n) is int and 0 < n < 1 << 31 for n in (dims, hidden, heads)):
        raise EdgeError(
            f"{file.path} has the impossible rope.dimension_count {dims!r}; download it again."
        )
    head_dim = max(1, hidden // heads)
    factor = dims / head_dim
    while int(head_dim * factor) < dims:
        factor = math.nextafter(factor, math.inf)
    return factor


def _shortest(value: Any) -> Any:
    """A float32 as the number somebody wrote: 1e-05 rather than 9.999999747378752e-06."""
    if type(value) is not float or not abs(value) < 1e30:
        return value
    narrow = np.float32(value)
    return float(str(narrow)) if float(narrow) == value else value

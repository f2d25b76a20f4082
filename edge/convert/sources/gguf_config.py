"""The network that a GGUF file describes, and a description of ours in its keys.

Keys: ggml's docs/gguf.md. Llama 3.1's rope scaling has none: its factors are a tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edge.errors import EdgeError
from edge.formats.gguf import GgufFile, Value
from edge.formats.safetensors import Array
from edge.model.config import DEFAULT_ROPE_THETA, ModelConfig
from edge.model.rope_scaling import RopeScaling, yarn_gain

ARCHITECTURES = ("stablelm", "llama")
EPSILON = {"stablelm": "layer_norm_epsilon", "llama": "layer_norm_rms_epsilon"}
ROPE_BASE = "rope.freq_base"
ROPE_FACTORS = "rope_freqs.weight"
# Keys that llama.cpp takes with one value for each layer too.
PER_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")
LAYER = re.compile(r"blk\.(0|[1-9]\d{0,4})\..+")
LLAMA3_CONTEXT = 8192  # of Llama 3.1 and 3.2, whose other numbers are RopeScaling's defaults
YARN_KEYS = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}


def rope_base_key(architecture: str) -> str:
    """The key whose absence makes llama.cpp take base 10000."""
    return f"{architecture}.{ROPE_BASE}"


def read_gguf_config(file: GgufFile, rope_factors: Array | None = None) -> ModelConfig:
    """The network of a file of an architecture in ARCHITECTURES, without its tokenizer's ids.

    `rope_factors` is the tensor ROPE_FACTORS, (rotated dims / 2,), if the file has it.
    """
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    if "token_embd.weight" not in shapes:
        raise EdgeError(f"{file.path} has no token_embd.weight; choose another file.")
    keys = _Keys(file)
    hidden, heads = keys.needed("embedding_length"), keys.needed("attention.head_count")
    if window := keys.get("attention.sliding_window"):
        raise EdgeError(
            f"{file.path} attends to a sliding window of {window} tokens, which edge does not "
            f"compute; run the file itself, or choose another model."
        )
    raw = {
        "model_type": keys.architecture,
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": hidden,
        "intermediate_size": keys.needed("feed_forward_length"),
        "num_hidden_layers": _layers(keys, file),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.get("attention.head_count_kv", heads),
        "head_dim": keys.get("attention.key_length"),
        "max_position_embeddings": keys.needed("context_length"),
        "rope_theta": _shortest(keys.get(ROPE_BASE, DEFAULT_ROPE_THETA)),
        "partial_rotary_factor": _rotary_factor(keys, hidden, heads),
        "tie_word_embeddings": keys.architecture == "llama" and "output.weight" not in shapes,
        # By the tensors, as in llama.cpp, whose converter sometimes writes the last one wrongly.
        "use_qkv_bias": _any_ends(shapes, ".attn_q.bias"),
        "use_o_bias": _any_ends(shapes, ".attn_output.bias"),
        "mlp_bias": _any_ends(shapes, ".ffn_down.bias"),
        "qk_layernorm": _any_ends(shapes, ".attn_q_norm.weight"),
        "use_parallel_residual": not _any_ends(shapes, ".ffn_norm.weight"),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    epsilon = _shortest(keys.needed(f"attention.{EPSILON[keys.architecture]}"))
    raw |= {"rms_norm_eps" if keys.architecture == "llama" else "layer_norm_eps": epsilon}
    raw |= {"rope_scaling": _read_scaling(keys)}
    config = ModelConfig.from_dict(raw, str(file.path))
    return _with_factors(config, rope_factors, file)


class _Keys:
    """Keys of a file's architecture."""

    def __init__(self, file: GgufFile):
        self.architecture = str(file.keys["general.architecture"])
        self.file, self.path = file.keys, file.path

    def get(self, name: str, default: Any = None) -> Any:
        """The value, of a list with one for each layer the one that all have."""
        value = self.file.get(f"{self.architecture}.{name}", default)
        if name not in PER_LAYER or not isinstance(value, list):
            return value
        if len(value) != self.needed("block_count") or len(set(value)) != 1:
            raise EdgeError(
                f"{self.path} does not give all layers the same {name}, as edge's networks have; "
                f"run the file itself, or choose another."
            )
        return value[0]

    def needed(self, name: str) -> Any:
        key = f"{self.architecture}.{name}"
        if key not in self.file:
            raise EdgeError(
                f"{self.path} has no key {key}; download it again or choose another file."
            )
        return self.get(name)


def _any_ends(names: Mapping[str, Any], end: str) -> bool:
    return any(name.endswith(end) for name in names)


def _layers(keys: _Keys, file: GgufFile) -> Value:
    """block_count, checked against the tensors, since later code loops over it."""
    claimed: Value = keys.needed("block_count")
    matches = [LAYER.fullmatch(tensor.name) for tensor in file.tensors]
    found = len({match[1] for match in matches if match})
    if claimed != found:
        raise EdgeError(f"{file.path} claims {claimed} layers and has {found}; download it again.")
    return claimed


def _rotary_factor(keys: _Keys, hidden: Any, heads: Any) -> Any:
    """The factor whose product with head_dim, truncated, is the file's dimension_count."""
    dims: Any = keys.get("rope.dimension_count")
    if dims is None:
        return 1.0  # as llama.cpp
    if not all(type(n) is int and 0 < n < 1 << 31 for n in (dims, hidden, heads)):
        raise EdgeError(
            f"{keys.path} has an invalid rope.dimension_count ({dims!r}); download it again."
        )
    head_dim = max(1, hidden // heads)
    factor = dims / head_dim
    while int(head_dim * factor) < dims:
        factor = math.nextafter(factor, math.inf)
    return factor


def _shortest(value: Any) -> Any:
    """The shortest decimal of a float32: 1e-05 rather than 9.999999747378752e-06."""
    if type(value) is not float or not abs(value) < 1e30:
        return value
    narrow = np.float32(value)
    return float(str(narrow)) if float(narrow) == value else value


def _read_scaling(keys: _Keys) -> dict[str, Any] | None:
    """`rope_scaling` as config.json has it; llama.cpp takes a factor of 0 as 1, which is none."""
    factor = _shortest(keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 0.0)))
    kind, gain = keys.get("rope.scaling.type", "linear"), keys.get("rope.scaling.attn_factor", 1.0)
    if gain != 1 and kind != "yarn":
        kind = f"{kind} with attn_factor {gain}"  # which no config.json can say
    if kind == "none" or (kind == "linear" and factor in (0, 1)):
        return None
    if kind == "yarn" and factor in (0, 1) and gain == 1:
        return None
    scaling = {"rope_type": kind, "factor": factor}
    if kind != "yarn" or type(factor) not in (int, float):
        return scaling
    context = keys.get("rope.scaling.original_context_length", keys.needed("context_length"))
    scaling["original_max_position_embeddings"] = context
    for ours, name in YARN_KEYS.items():
        scaling[ours] = _shortest(keys.get(f"rope.scaling.{name}"))
    if type(gain) in (int, float) and gain != 1:
        # float32 has 7 digits.
        scaling["attention_factor"] = float(f"{gain * yarn_gain(factor):.6g}")
    return scaling


def _with_factors(config: ModelConfig, factors: Array | None, file: GgufFile) -> ModelConfig:
    """Adds Llama 3.1's scaling, once it gives the factors of the file."""
    if factors is None:
        return config
    scaling = RopeScaling("llama3", _shortest(float(factors.max())), LLAMA3_CONTEXT)
    expected = rope_factors(replace(config, rope_scaling=scaling))
    if config.rope_scaling or factors.shape != expected.shape:
        raise _unknown_factors(file)
    if not np.allclose(factors, expected, rtol=1e-4):
        raise _unknown_factors(file)
    return replace(config, rope_scaling=scaling)


def _unknown_factors(file: GgufFile) -> EdgeError:
    return EdgeError(
        f"{file.path} scales its rotary positions by {ROPE_FACTORS} in another way than Llama 3.1; "
        f"run the file itself, or choose another."
    )


def rope_factors(config: ModelConfig) -> Array:
    """What llama.cpp divides each pair's frequency by, float32 (rotated dims / 2,)."""
    assert config.rope_scaling is not None
    dims, base = config.rotary_dims, config.rope_theta
    scaled = np.array(config.rope_scaling.frequencies(dims, base))
    plain = base ** (-np.arange(0, dims, 2) / dims)
    return np.asarray(plain / scaled, np.float32)


def scaling_keys(config: ModelConfig, name: str) -> Mapping[str, str | int | float]:
    """The keys of a network's rope scaling, without the architecture.

    An EdgeError with the model's `name` where llama.cpp has no form of it.
    """
    scaling = config.rope_scaling
    if scaling is None or (scaling.rope_type == "llama3" and config.model_type == "llama"):
        return {}
    if scaling.rope_type not in ("linear", "yarn") or not scaling.truncate:
        raise EdgeError(
            f"{name} has rope scaling {scaling.rope_type!r}, which llama.cpp does not compute for "
            f"{config.model_type} models; make an MLX artefact."
        )
    found: dict[str, str | int | float] = {
        "rope.scaling.type": scaling.rope_type,
        "rope.scaling.factor": scaling.factor,
    }
    if scaling.rope_type == "yarn":
        found["rope.scaling.original_context_length"] = scaling.original_max_position_embeddings
        found |= {f"rope.scaling.{key}": getattr(scaling, n) for n, key in YARN_KEYS.items()}
        # llama.cpp multiplies by YaRN's own gain.
        gain = scaling.attention_factor / yarn_gain(scaling.factor)
        found |= {"rope.scaling.attn_factor": gain} if not math.isclose(gain, 1) else {}
    return found

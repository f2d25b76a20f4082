"""The one description of a StableLM network, read from every published spelling.

Three spellings exist: `stablelm_epoch` (the original remote-code configs:
rope_pct, norm_eps, num_heads), `stablelm` (transformers 4: rope keys at the top
level) and transformers 5 (`rope_parameters`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.errors import EdgeError

MODEL_TYPES = ("stablelm", "stablelm_epoch")
# The defaults of transformers' StableLmConfig, for keys that old configs leave out.
DEFAULT_ROPE_THETA = 10000.0
DEFAULT_PARTIAL_ROTARY_FACTOR = 0.25


@dataclass(frozen=True)
class ModelConfig:
    """A StableLM's shape and switches, in transformers' names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rope_theta: float = DEFAULT_ROPE_THETA
    partial_rotary_factor: float = DEFAULT_PARTIAL_ROTARY_FACTOR
    layer_norm_eps: float = 1e-5
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_ids: tuple[int, ...] = (0,)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dims(self) -> int:
        """How many leading dims of a head are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """Read any published spelling.

        Args:
            raw: the parsed config.json.
            where: the file's name for error messages.

        Raises:
            EdgeError: another architecture, a missing or impossible value, or a feature
                that no published StableLM uses and this network does not have.
        """
        _refuse_other_networks(raw, where)
        heads = _whole(raw, where, "num_attention_heads", "num_heads")
        vocab_size = _whole(raw, where, "vocab_size")
        bos, eos = (_token_ids(raw, where, f"{k}_token_id", vocab_size) for k in ("bos", "eos"))
        config = cls(
            vocab_size=vocab_size,
            hidden_size=_whole(raw, where, "hidden_size"),
            intermediate_size=_whole(raw, where, "intermediate_size"),
            num_hidden_layers=_whole(raw, where, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=_whole(raw, where, "num_key_value_heads", default=heads),
            max_position_embeddings=_whole(raw, where, "max_position_embeddings", default=4096),
            layer_norm_eps=_positive(raw, where, "layer_norm_eps", "norm_eps", default=1e-5),
            use_qkv_bias=bool(raw.get("use_qkv_bias", False)),
            qk_layernorm=bool(raw.get("qk_layernorm", False)),
            use_parallel_residual=bool(raw.get("use_parallel_residual", False)),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            bos_token_id=bos[0] if bos else None,
            eos_token_ids=eos,
            **_read_rope(raw, where),
        )
        config._check(where)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The config.json that transformers (4 and 5), mlx-lm and edge all read."""
        rope = {
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.partial_rotary_factor,
        }
        eos = list(self.eos_token_ids)
        return {
            "architectures": ["StableLmForCausalLM"],
            "model_type": "stablelm",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_act": "silu",
            "layer_norm_eps": self.layer_norm_eps,
            "use_qkv_bias": self.use_qkv_bias,
            "qk_layernorm": self.qk_layernorm,
            "use_parallel_residual": self.use_parallel_residual,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            **rope,
            "rope_parameters": {"rope_type": "default", **rope},
        }

    def matching(self, tensor_names: Collection[str]) -> ModelConfig:
        """The same config with the switches that the tensors decide.

        The class default of `use_qkv_bias` differed between releases and old configs
        leave it out, so the presence of the tensors is the truth.
        """
        return replace(self, use_qkv_bias=any(n.endswith("q_proj.bias") for n in tensor_names))

    def _check(self, where: str) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise EdgeError(
                f"{where}: hidden_size {self.hidden_size} is not divisible by "
                f"num_attention_heads {self.num_attention_heads}; check the file."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise EdgeError(
                f"{where}: num_attention_heads {self.num_attention_heads} is not divisible by "
                f"num_key_value_heads {self.num_key_value_heads}; check the file."
            )
        if self.rotary_dims % 2 or not 0 < self.rotary_dims <= self.head_dim:
            raise EdgeError(
                f"{where}: partial_rotary_factor {self.partial_rotary_factor} of head size "
                f"{self.head_dim} rotates {self.rotary_dims} dims, which must be even and "
                f"between 2 and the head size; check the file."
            )


def read_config(path: Path) -> ModelConfig:
    """Read a config.json.

    Raises:
        EdgeError: the file is missing, is not JSON, or describes another network.
    """
    return ModelConfig.from_dict(read_json_object(path), str(path))


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        EdgeError: missing, unreadable or another kind of JSON.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EdgeError(
            f"{path} is missing: a checkpoint is a directory with config.json, tokenizer.json "
            f"and *.safetensors; check the path or download it again."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise EdgeError(f"{path} cannot be read as JSON ({error}); download it again.") from None
    if not isinstance(data, dict):
        raise EdgeError(f"{path} holds no JSON object; download it again.")
    return data


def _refuse_other_networks(raw: Mapping[str, Any], where: str) -> None:
    kind = raw.get("model_type")
    if kind not in MODEL_TYPES:
        raise EdgeError(
            f"{where} describes a {kind!r} model; edge runs {' and '.join(MODEL_TYPES)}, "
            f"so choose a checkpoint of the StableLM family."
        )
    act = raw.get("hidden_act", "silu")
    if act != "silu":
        raise EdgeError(
            f"{where}: hidden_act {act!r} is not supported, only 'silu'; "
            f"no published StableLM uses another, so check the file."
        )


def _read_rope(raw: Mapping[str, Any], where: str) -> dict[str, float]:
    nested = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or {}
    if not isinstance(nested, Mapping) or not isinstance(scaling, Mapping):
        raise EdgeError(f"{where}: rope_parameters or rope_scaling is no object; check the file.")
    kinds = {str(d.get("rope_type", d.get("type", "default"))) for d in (nested, scaling)}
    if kinds != {"default"}:
        raise EdgeError(
            f"{where}: rope scaling {sorted(kinds - {'default'})} is not supported; "
            f"remove rope_scaling to run the model at its trained context."
        )
    merged = {**raw, **nested}
    return {
        "rope_theta": _positive(merged, where, "rope_theta", default=DEFAULT_ROPE_THETA),
        "partial_rotary_factor": _positive(
            merged,
            where,
            "partial_rotary_factor",
            "rope_pct",
            default=DEFAULT_PARTIAL_ROTARY_FACTOR,
        ),
    }


def _token_ids(raw: Mapping[str, Any], where: str, name: str, vocab_size: int) -> tuple[int, ...]:
    """One id, a list of them, or none."""
    value = raw.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for i in ids:
        if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < vocab_size:
            raise EdgeError(
                f"{where}: {name} is {value!r}, not a token of the vocabulary of {vocab_size}; "
                f"check the file."
            )
    return tuple(ids)


def _first(raw: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((raw[name] for name in names if raw.get(name) is not None), None)


def _whole(raw: Mapping[str, Any], where: str, *names: str, default: int | None = None) -> int:
    value = _first(raw, names)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise EdgeError(
            f"{where}: {names[0]} is {value!r}, not a positive whole number; check the file."
        )
    return value


def _positive(raw: Mapping[str, Any], where: str, *names: str, default: float) -> float:
    value = _first(raw, names)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
        raise EdgeError(f"{where}: {names[0]} is {value!r}, not a positive number; check the file.")
    return float(value)

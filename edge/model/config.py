"""The one description of a network, read from every published spelling.

Two families share the network, StableLM and Llama. Their configs come in four
spellings: `stablelm_epoch` (the original remote-code configs: rope_pct, norm_eps,
num_heads), `stablelm` and `llama` (transformers 4: rope keys at the top level) and
transformers 5 (`rope_parameters`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edge.errors import EdgeError
from edge.formats.files import read_json_object

ModelType = Literal["stablelm", "llama"]
# What a config.json may call itself -> the network that it is.
MODEL_TYPES: dict[str, ModelType] = {
    "stablelm": "stablelm",
    "stablelm_epoch": "stablelm",
    "llama": "llama",
}
TITLES: dict[ModelType, str] = {"stablelm": "StableLM", "llama": "Llama"}


@dataclass(frozen=True)
class _Defaults:
    """What transformers' config class assumes for keys that a file leaves out."""

    norm_eps: float
    partial_rotary_factor: float
    max_position_embeddings: int
    bos_token_id: int | None
    eos_token_id: int | None


# An old StableLM config without bos and eos has none; a Llama's are its tokenizer's 1 and 2.
_DEFAULTS: dict[ModelType, _Defaults] = {
    "stablelm": _Defaults(1e-5, 0.25, 4096, None, None),
    "llama": _Defaults(1e-6, 1.0, 2048, 1, 2),
}
DEFAULT_ROPE_THETA = 10000.0


@dataclass(frozen=True)
class ModelConfig:
    """A network's shape and switches, in transformers' names for StableLM.

    `model_type` decides the norms: LayerNorm with bias in StableLM, RMSNorm in Llama;
    `layer_norm_eps` is the epsilon of either. `use_o_bias` and `use_mlp_bias` occur in Llama only.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rope_theta: float = DEFAULT_ROPE_THETA
    partial_rotary_factor: float = 0.25
    layer_norm_eps: float = 1e-5
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_ids: tuple[int, ...] = (0,)
    model_type: ModelType = "stablelm"
    use_o_bias: bool = False
    use_mlp_bias: bool = False

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
                that this network does not have.
        """
        model_type = _model_type(raw, where)
        defaults = _DEFAULTS[model_type]
        heads = _whole(raw, where, "num_attention_heads", "num_heads")
        vocab_size = _whole(raw, where, "vocab_size")
        rope_theta, rotary_factor = _read_rope(raw, where, defaults.partial_rotary_factor)
        bos = _token_ids(raw, where, "bos_token_id", vocab_size, defaults.bos_token_id)
        config = cls(
            vocab_size=vocab_size,
            hidden_size=_whole(raw, where, "hidden_size"),
            intermediate_size=_whole(raw, where, "intermediate_size"),
            num_hidden_layers=_whole(raw, where, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=_whole(raw, where, "num_key_value_heads", default=heads),
            max_position_embeddings=_whole(
                raw, where, "max_position_embeddings", default=defaults.max_position_embeddings
            ),
            tie_word_embeddings=_flag(raw, where, "tie_word_embeddings"),
            bos_token_id=bos[0] if bos else None,
            eos_token_ids=_token_ids(raw, where, "eos_token_id", vocab_size, defaults.eos_token_id),
            model_type=model_type,
            layer_norm_eps=_positive(raw, where, *_EPS_KEYS[model_type], default=defaults.norm_eps),
            rope_theta=rope_theta,
            partial_rotary_factor=rotary_factor,
            **_SWITCHES_OF[model_type](raw, where),
        )
        config._check(where, raw.get("head_dim"))
        return config

    def to_dict(self) -> dict[str, Any]:
        """The config.json that transformers (4 and 5), mlx-lm and edge all read."""
        eos = list(self.eos_token_ids)
        return {
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_act": "silu",
            "use_qkv_bias": self.use_qkv_bias,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            **(self._llama_keys() if self.model_type == "llama" else self._stablelm_keys()),
        }

    def _stablelm_keys(self) -> dict[str, Any]:
        rope = {
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.partial_rotary_factor,
        }
        return {
            "architectures": ["StableLmForCausalLM"],
            "layer_norm_eps": self.layer_norm_eps,
            "qk_layernorm": self.qk_layernorm,
            "use_parallel_residual": self.use_parallel_residual,
            **rope,
            "rope_parameters": {"rope_type": "default", **rope},
        }

    def _llama_keys(self) -> dict[str, Any]:
        # transformers has one switch for the biases of q, k, v and o; ours beside it tell more.
        return {
            "architectures": ["LlamaForCausalLM"],
            "head_dim": self.head_dim,
            "rms_norm_eps": self.layer_norm_eps,
            "attention_bias": self.use_qkv_bias or self.use_o_bias,
            "use_o_bias": self.use_o_bias,
            "mlp_bias": self.use_mlp_bias,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
        }

    def matching(self, tensor_names: Collection[str]) -> ModelConfig:
        """The same config with the switches that the tensors decide.

        The class default of `use_qkv_bias` differed between releases and old configs
        leave it out, so the presence of the tensors is the truth.
        """
        return replace(self, use_qkv_bias=any(n.endswith("q_proj.bias") for n in tensor_names))

    def _check(self, where: str, head_dim: object) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise EdgeError(
                f"{where}: hidden_size {self.hidden_size} is not divisible by "
                f"num_attention_heads {self.num_attention_heads}; check the file."
            )
        if head_dim is not None and head_dim != self.head_dim:
            raise EdgeError(
                f"{where}: head_dim is {head_dim!r}, not hidden_size / num_attention_heads = "
                f"{self.head_dim}, and edge runs no such network; choose another checkpoint."
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
        if self.model_type == "llama" and self.rotary_dims != self.head_dim:
            raise EdgeError(
                f"{where}: partial_rotary_factor {self.partial_rotary_factor} does not belong to "
                f"a Llama, which rotates whole heads; check the file."
            )


def read_config(path: Path) -> ModelConfig:
    """Read a config.json.

    Raises:
        EdgeError: the file is missing, is not JSON, or describes another network.
    """
    return ModelConfig.from_dict(read_json_object(path), str(path))


_EPS_KEYS: dict[ModelType, tuple[str, ...]] = {
    "stablelm": ("layer_norm_eps", "norm_eps"),
    "llama": ("rms_norm_eps",),
}


def _stablelm_switches(raw: Mapping[str, Any], where: str) -> dict[str, bool]:
    names = ("use_qkv_bias", "qk_layernorm", "use_parallel_residual")
    return {name: _flag(raw, where, name) for name in names}


def _llama_switches(raw: Mapping[str, Any], where: str) -> dict[str, bool]:
    attention_bias = _flag(raw, where, "attention_bias")
    return {
        "use_qkv_bias": _flag(raw, where, "use_qkv_bias", attention_bias),
        "use_o_bias": _flag(raw, where, "use_o_bias", attention_bias),
        "use_mlp_bias": _flag(raw, where, "mlp_bias"),
    }


_SWITCHES_OF = {"stablelm": _stablelm_switches, "llama": _llama_switches}


def _model_type(raw: Mapping[str, Any], where: str) -> ModelType:
    """The network that the config names; refuses what ours cannot compute."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise EdgeError(
            f"{where} describes a {kind!r} model; edge runs {', '.join(MODEL_TYPES)}, "
            f"so choose a checkpoint of the StableLM or Llama family."
        )
    act = raw.get("hidden_act", "silu")
    if act != "silu":
        raise EdgeError(
            f"{where}: hidden_act {act!r} is not supported, only 'silu'; "
            f"no published {TITLES[MODEL_TYPES[kind]]} uses another, so check the file."
        )
    return MODEL_TYPES[kind]


def _read_rope(raw: Mapping[str, Any], where: str, default_factor: float) -> tuple[float, float]:
    """The rotary base, and which part of a head is rotated."""
    nested = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or {}
    if not isinstance(nested, Mapping) or not isinstance(scaling, Mapping):
        raise EdgeError(f"{where}: rope_parameters or rope_scaling is no object; check the file.")
    kinds = {str(d.get("rope_type", d.get("type", "default"))) for d in (nested, scaling)}
    if any(d.get("factor", 1) != 1 for d in (nested, scaling)):
        kinds.add("factor")
    if kinds != {"default"}:
        raise EdgeError(
            f"{where}: rope scaling {sorted(kinds - {'default'})} is not supported; "
            f"remove rope_scaling to run the model at its trained context."
        )
    merged = {**raw, **{key: value for key, value in nested.items() if value is not None}}
    theta = _positive(merged, where, "rope_theta", default=DEFAULT_ROPE_THETA)
    names = ("partial_rotary_factor", "rope_pct")
    return theta, _positive(merged, where, *names, default=default_factor)


def _token_ids(
    raw: Mapping[str, Any], where: str, name: str, vocab_size: int, default: int | None
) -> tuple[int, ...]:
    """One id, a list of them, or none; null in the file means none."""
    value = raw.get(name, default)
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


def _flag(raw: Mapping[str, Any], where: str, name: str, default: bool = False) -> bool:
    value = _first(raw, (name,))
    if value is None:
        return default
    if not isinstance(value, bool):  # "false" would be true
        raise EdgeError(f"{where}: {name} is {value!r}, not true or false; check the file.")
    return value


def _positive(raw: Mapping[str, Any], where: str, *names: str, default: float) -> float:
    value = _first(raw, names)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1e-30 < value < 1e30:
        raise EdgeError(f"{where}: {names[0]} is {value!r}, not a positive number; check the file.")
    return float(value)

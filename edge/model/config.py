"""The one description of a network, read from every published spelling.

There are four: `stablelm_epoch` (the original remote-code configs: rope_pct, norm_eps, num_heads),
`stablelm` and `llama` (transformers 4: rope keys on top) and transformers 5 (`rope_parameters`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
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
DEFAULT_ROPE_THETA = 10000.0
SIZES = 7  # the first fields of a ModelConfig, named alike in both families

# What transformers' config class assumes for keys that a file leaves out. An old StableLM config
# without bos and eos has none; a Llama's are its tokenizer's 1 and 2.
DEFAULTS: dict[ModelType, dict[str, Any]] = {
    "stablelm": {"max_position_embeddings": 4096},
    "llama": {
        "layer_norm_eps": 1e-6,
        "partial_rotary_factor": 1.0,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
# Other names of our fields, which count where the field's own name is missing.
SHARED_ALIASES = (("num_heads", "num_attention_heads"), ("rope_pct", "partial_rotary_factor"))
BIASES = (("attention_bias", "use_qkv_bias"), ("attention_bias", "use_o_bias"))
ALIASES: dict[ModelType, tuple[tuple[str, str], ...]] = {
    "stablelm": (*SHARED_ALIASES, ("norm_eps", "layer_norm_eps")),
    # transformers has one switch for the biases of q, k, v and o; ours beside it tell more.
    "llama": (
        *SHARED_ALIASES,
        *BIASES,
        ("rms_norm_eps", "layer_norm_eps"),
        ("mlp_bias", "use_mlp_bias"),
    ),
}
# Our fields that a config of the family does not have under this name.
FOREIGN: dict[ModelType, tuple[str, ...]] = {
    "stablelm": ("use_o_bias", "use_mlp_bias"),
    "llama": ("layer_norm_eps", "use_mlp_bias", "qk_layernorm", "use_parallel_residual"),
}


@dataclass(frozen=True)
class ModelConfig:
    """A network's shape and switches; transformers' names for StableLM, the last two Llama's."""

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
        """Leading dims of a head that are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """Reads any published spelling; `where` is the file's name for error messages.

        Raises:
            EdgeError: another architecture, a missing or impossible value, or another feature.
        """
        model_type = _model_type(raw, where)
        values = {**DEFAULTS[model_type], **_own_names(raw, where, model_type)}
        values.setdefault("num_key_value_heads", values.get("num_attention_heads"))
        plain = (field for field in fields(cls) if field.type in ("int", "float", "bool"))
        checked = {field.name: _checked(field, values, where, model_type) for field in plain}
        bos, eos = (
            _token_ids(name, raw.get(name, values.get(name)), checked["vocab_size"], where)
            for name in ("bos_token_id", "eos_token_id")
        )
        ends = {"bos_token_id": bos[0] if bos else None, "eos_token_ids": eos}
        config = cls(**{**checked, **ends}, model_type=model_type)
        for problem in config._problems(raw.get("head_dim")):
            raise EdgeError(f"{where}: {problem}; check the file, or choose another checkpoint.")
        return config

    def to_dict(self) -> dict[str, Any]:
        """The config.json that transformers (4 and 5), mlx-lm and edge all read."""
        eos, theta = list(self.eos_token_ids), {"rope_theta": self.rope_theta}
        rope = theta | {"partial_rotary_factor": self.partial_rotary_factor}
        sizes = {field.name: getattr(self, field.name) for field in fields(self)[:SIZES]}
        written = {
            "model_type": self.model_type,
            **sizes,
            "hidden_act": "silu",
            "use_qkv_bias": self.use_qkv_bias,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        }
        if self.model_type == "stablelm":
            return written | {
                "architectures": ["StableLmForCausalLM"],
                "layer_norm_eps": self.layer_norm_eps,
                "qk_layernorm": self.qk_layernorm,
                "use_parallel_residual": self.use_parallel_residual,
                **rope,
                "rope_parameters": {"rope_type": "default", **rope},
            }
        return written | {
            "architectures": ["LlamaForCausalLM"],
            "head_dim": self.head_dim,
            "rms_norm_eps": self.layer_norm_eps,
            "attention_bias": self.use_qkv_bias or self.use_o_bias,
            "use_o_bias": self.use_o_bias,
            "mlp_bias": self.use_mlp_bias,
            **theta,
            "rope_parameters": {"rope_type": "default", **theta},
        }

    def matching(self, tensor_names: Collection[str]) -> ModelConfig:
        """With `use_qkv_bias` as the tensors have it: old configs leave it out."""
        return replace(self, use_qkv_bias=any(n.endswith("q_proj.bias") for n in tensor_names))

    def drops(self, tensor_name: str) -> bool:
        """A tensor without use: old files carry rotary tables, some savers write a tied head."""
        is_tied = self.tie_word_embeddings and tensor_name.startswith("lm_head.")
        return is_tied or tensor_name.endswith("rotary_emb.inv_freq")

    def _problems(self, head_dim: object) -> Iterator[str]:
        """Reasons why values that are possible by themselves do not make a network."""
        heads, kv_heads, width = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        rotary = f"partial_rotary_factor {self.partial_rotary_factor}"
        if self.hidden_size % heads:
            yield f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {heads}"
        if head_dim is not None and head_dim != width:
            yield f"head_dim is {head_dim!r}, but hidden_size / num_attention_heads is {width}"
        if heads % kv_heads:
            yield f"num_attention_heads {heads} is not divisible by num_key_value_heads {kv_heads}"
        if self.rotary_dims % 2 or not 0 < self.rotary_dims <= width:
            yield f"{rotary} rotates {self.rotary_dims} of {width} dims, which must be even"
        if self.model_type == "llama" and self.rotary_dims != width:
            yield f"{rotary} is not a Llama's, which rotates whole heads"


def read_config(path: Path) -> ModelConfig:
    """A config.json; an EdgeError where it is missing, broken or of another network."""
    return ModelConfig.from_dict(read_json_object(path), str(path))


def _model_type(raw: Mapping[str, Any], where: str) -> ModelType:
    kind, act = raw.get("model_type"), raw.get("hidden_act", "silu")
    if not isinstance(kind, str) or kind not in MODEL_TYPES or act != "silu":
        raise EdgeError(
            f"{where} describes a {kind!r} model with hidden_act {act!r}; edge runs "
            f"{', '.join(MODEL_TYPES)} with 'silu', so choose a checkpoint of the StableLM or "
            f"Llama family."
        )
    return MODEL_TYPES[kind]


def _own_names(raw: Mapping[str, Any], where: str, model_type: ModelType) -> dict[str, Any]:
    """Values of the file, null apart, under the names of our fields."""
    given = {name: value for name, value in raw.items() if value is not None}
    aliases = {field: given[name] for name, field in ALIASES[model_type] if name in given}
    for name in FOREIGN[model_type]:
        given.pop(name, None)
    return {**aliases, **given, **_nested_rope(raw, where)}


def _nested_rope(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Rotation as `rope_parameters` has it; refuses scaling there and in `rope_scaling`."""
    nested, scaling = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    for rope in (nested, scaling):
        is_object = isinstance(rope, Mapping)
        kind = rope.get("rope_type", rope.get("type", "default")) if is_object else rope
        if kind != "default" or rope.get("factor", 1) != 1:
            raise EdgeError(
                f"{where}: rope scaling {kind!r} is not supported; remove rope_scaling to run the "
                f"model at its trained context."
            )
    names = ("rope_theta", "partial_rotary_factor")
    return {name: nested[name] for name in names if nested.get(name) is not None}


def _token_ids(name: str, value: Any, vocab_size: int, where: str) -> tuple[int, ...]:
    """One id, a list of them, or none; null in the file means none."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
        raise EdgeError(
            f"{where}: {name} is {value!r}, not a token of the vocabulary of {vocab_size}; "
            f"check the file."
        )
    return tuple(ids)


def _checked(field: Field[Any], values: Mapping[str, Any], where: str, kind: ModelType) -> Any:
    """One value, of the field's type and in its range."""
    value = values.get(field.name, field.default)
    if field.type == "bool":
        fits, wanted = type(value) is bool, "true or false"  # the text "false" would be true
    elif field.type == "int":
        fits, wanted = type(value) is int and 0 < value < 2**31, "a positive whole number"
    else:
        fits = type(value) in (int, float) and 1e-30 < value < 1e30
        wanted = "a positive number"
    if not fits:
        found = "missing" if value is MISSING or value is None else repr(value)
        aliases = (alias for alias, name in ALIASES[kind] if name == field.name)
        names = " or ".join((field.name, *aliases))
        raise EdgeError(f"{where}: {names} is {found}, not {wanted}; check the file.")
    return float(value) if field.type == "float" else value

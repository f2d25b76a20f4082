"""A network's config.json, read from every published spelling.

`stablelm_epoch` (old remote code: rope_pct, norm_eps, num_heads), `stablelm` and `llama`
(transformers 4: rope keys at the top level; transformers 5: in `rope_parameters`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any, Literal

from edge.errors import EdgeError
from edge.model.rope_scaling import RopeScaling, read_rope_scaling

ModelType = Literal["stablelm", "llama"]
# `model_type` of a config.json -> the network.
MODEL_TYPES: dict[str, ModelType] = {
    "stablelm": "stablelm",
    "stablelm_epoch": "stablelm",
    "llama": "llama",
}
DEFAULT_ROPE_THETA = 10000.0
ROPE_KEYS = ("rope_theta", "partial_rotary_factor")  # at the top level or nested
SIZES = 7  # the first fields of a ModelConfig, with the same names in both families

# Defaults of transformers' config classes for missing keys. Without bos and eos a Llama has its
# tokenizer's 1 and 2, an old StableLM none.
_LLAMA = {"layer_norm_eps": 1e-6, "partial_rotary_factor": 1.0, "max_position_embeddings": 2048}
DEFAULTS: dict[ModelType, dict[str, Any]] = {
    "stablelm": {"max_position_embeddings": 4096},
    "llama": {**_LLAMA, "bos_token_id": 1, "eos_token_id": 2},
}
# Keys of a field where they differ from its name; the first one present counts.
_SHARED = {
    "num_attention_heads": ("num_attention_heads", "num_heads"),
    "partial_rotary_factor": ("partial_rotary_factor", "rope_pct"),
}
KEYS: dict[ModelType, dict[str, tuple[str, ...]]] = {
    "stablelm": {
        **_SHARED,
        "layer_norm_eps": ("layer_norm_eps", "norm_eps"),
        "use_o_bias": (),
        "use_mlp_bias": (),
    },
    "llama": {
        **_SHARED,
        "layer_norm_eps": ("rms_norm_eps",),
        # transformers has one switch for the biases of q, k, v and o; edge adds one for each half.
        "use_qkv_bias": ("use_qkv_bias", "attention_bias"),
        "use_o_bias": ("use_o_bias", "attention_bias"),
        "use_mlp_bias": ("mlp_bias",),
        "qk_layernorm": (),
        "use_parallel_residual": (),
    },
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of a network, named as in transformers' StableLM and Llama."""

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
    rope_scaling: RopeScaling | None = None

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dims(self) -> int:
        """Number of leading dims of a head that are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """Reads any published spelling; an EdgeError names the file `where` and the value."""
        model_type = _model_type(raw, where)
        rope = _rope(raw, where)
        given = {**raw, **{name: rope[name] for name in ROPE_KEYS if rope.get(name) is not None}}
        plain = (field for field in fields(cls) if field.type in ("int", "float", "bool"))
        checked = {field.name: _value(field, given, where, model_type) for field in plain}
        bos, eos = (
            _token_ids(name, {**DEFAULTS[model_type], **raw}, checked["vocab_size"], where)
            for name in ("bos_token_id", "eos_token_id")
        )
        ends = {"bos_token_id": bos[0] if bos else None, "eos_token_ids": eos}
        scaling = read_rope_scaling(rope, checked["max_position_embeddings"], where)
        config = cls(**{**checked, **ends}, model_type=model_type, rope_scaling=scaling)
        for problem in config._problems(raw):
            raise EdgeError(f"{where}: {problem}; check the file, or choose another checkpoint.")
        return config

    def to_dict(self) -> dict[str, Any]:
        """The config.json that transformers (4 and 5), mlx-lm and edge all read."""
        eos, rope = list(self.eos_token_ids), {"rope_theta": self.rope_theta}
        written = {
            "model_type": self.model_type,
            **{field.name: getattr(self, field.name) for field in fields(self)[:SIZES]},
            "hidden_act": "silu",
            "use_qkv_bias": self.use_qkv_bias,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        }
        if self.model_type == "stablelm":
            rope["partial_rotary_factor"] = self.partial_rotary_factor
            written |= {
                "architectures": ["StableLmForCausalLM"],
                "layer_norm_eps": self.layer_norm_eps,
                "qk_layernorm": self.qk_layernorm,
                "use_parallel_residual": self.use_parallel_residual,
            }
        else:
            written |= {
                "architectures": ["LlamaForCausalLM"],
                "head_dim": self.head_dim,
                "rms_norm_eps": self.layer_norm_eps,
                "attention_bias": self.use_qkv_bias or self.use_o_bias,
                "use_o_bias": self.use_o_bias,
                "mlp_bias": self.use_mlp_bias,
            }
        scaling = self.rope_scaling.to_dict() if self.rope_scaling else {"rope_type": "default"}
        written |= {"rope_scaling": scaling} if self.rope_scaling else {}
        return written | rope | {"rope_parameters": {**scaling, **rope}}

    def matching(self, tensor_names: Collection[str]) -> ModelConfig:
        """This config with `use_qkv_bias` taken from the tensors: old files leave it out."""
        return replace(self, use_qkv_bias=any(n.endswith("q_proj.bias") for n in tensor_names))

    def drops(self, tensor_name: str) -> bool:
        """True for an unused tensor: a rotary table of an old file, or a copy of a tied head."""
        is_tied = self.tie_word_embeddings and tensor_name.startswith("lm_head.")
        return is_tied or tensor_name.endswith("rotary_emb.inv_freq")

    def _problems(self, raw: Mapping[str, Any]) -> Iterator[str]:
        """Contradictions between the values."""
        head_dim, window = raw.get("head_dim"), raw.get("sliding_window")
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
        is_used = raw.get("use_sliding_window", True) and window != self.max_position_embeddings
        if window and is_used:
            yield f"sliding_window {window} is not supported"
        if self.model_type == "llama" and self.rotary_dims != width:
            yield f"{rotary} does not fit a Llama, which rotates whole heads"


def _model_type(raw: Mapping[str, Any], where: str) -> ModelType:
    kind, act = raw.get("model_type"), raw.get("hidden_act", "silu")
    if not isinstance(kind, str) or kind not in MODEL_TYPES or act != "silu":
        raise EdgeError(
            f"{where} describes a {kind!r} model with hidden_act {act!r}; choose a checkpoint of "
            f"the StableLM or Llama family with 'silu'."
        )
    return MODEL_TYPES[kind]


def _rope(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`rope_scaling` of transformers 4 and `rope_parameters` of transformers 5 as one object."""
    found = [raw.get(key) or {} for key in ("rope_parameters", "rope_scaling")]
    if not all(isinstance(rope, Mapping) for rope in found):
        raise EdgeError(
            f"{where}: rope_parameters and rope_scaling must be JSON objects; check the file."
        )
    outer = raw.get("original_max_position_embeddings")
    return {**found[0], **found[1]} | ({"original_max_position_embeddings": outer} if outer else {})


def _token_ids(name: str, given: Mapping[str, Any], vocab_size: int, where: str) -> tuple[int, ...]:
    """Ids from one id, a list of ids, or null."""
    value = given.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
        raise EdgeError(
            f"{where}: {name} is {value!r}, not an id below {vocab_size}; check the file."
        )
    return tuple(ids)


def _value(field: Field[Any], given: Mapping[str, Any], where: str, kind: ModelType) -> Any:
    """A field's value, checked; null in the file means the default."""
    keys = KEYS[kind].get(field.name, (field.name,))
    if field.name == "num_key_value_heads":
        keys += KEYS[kind]["num_attention_heads"]
    found = [key for key in keys if given.get(key) is not None]
    value = given[found[0]] if found else DEFAULTS[kind].get(field.name, field.default)
    if field.type == "bool":
        fits, wanted = type(value) is bool, "true or false"  # the text "false" would be true
    elif field.type == "int":
        fits, wanted = type(value) is int and 0 < value < 2**31, "a positive whole number"
    else:
        fits = type(value) in (int, float) and 1e-30 < value < 1e30
        wanted = "a positive number"
    if not fits:
        is_found = f"is {value!r}, not {wanted}" if found else "is missing"
        raise EdgeError(f"{where}: {' or '.join(found[:1] or keys)} {is_found}; check the file.")
    return float(value) if field.type == "float" else value

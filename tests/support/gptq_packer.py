"""GPTQ checkpoints made from the format's definition, to check edge's reader against.

Nothing here is edge's: packing follows AutoGPTQ's loops (qlinear_cuda_old.py), which write
3-bit codes as ten, a straddling one, ten, a straddling one, ten. Rounding is to the nearest,
without GPTQ's error compensation, which changes the codes and not their format.
"""

import json
from dataclasses import dataclass, field

import numpy as np
from safetensors.numpy import save_file

from tests.support.tiny import write_tokenizer

# In-features allow groups of 128; down_proj has another count of groups than the rest.
STABLELM = {
    "model_type": "stablelm",
    "vocab_size": 160,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 1_000_000,
    "partial_rotary_factor": 0.25,
    "layer_norm_eps": 1e-5,
    "use_qkv_bias": False,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 160,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@dataclass(frozen=True)
class Settings:
    """How to quantise; `overrides` replaces fields for matrices whose name ends with a key."""

    bits: int = 4
    group_size: int = 128
    act_order: bool = True
    static_groups: bool = False
    sym: bool = True
    stored_as: str = "gptq"
    scales: type = np.float16
    g_idx: bool = True
    overrides: dict = field(default_factory=dict)

    def of(self, name):
        """The settings of one matrix."""
        own = next((o for ending, o in self.overrides.items() if name.endswith(ending)), {})
        return Settings(**{**self.__dict__, **own})


@dataclass(frozen=True)
class Quantised:
    """One matrix as the definition has it: W[o, i] = scale[g, o] * (code[i, o] - zero[g, o])."""

    bits: int
    codes: np.ndarray  # (I, O)
    zeros: np.ndarray  # (G, O)
    scales: np.ndarray  # (G, O)
    group_of: np.ndarray  # (I,)

    def dense(self):
        """float64 (O, I); float32 holds it exactly."""
        scales = self.scales.astype(np.float64)[self.group_of]
        return (scales * (self.codes.astype(int) - self.zeros.astype(int)[self.group_of])).T

    def tensors(self, stem, settings):
        """What a checkpoint holds for it."""
        mask = (1 << self.bits) - 1
        stored = self.zeros.astype(int) - (1 if settings.stored_as == "gptq" else 0)
        parts = {
            f"{stem}.qweight": pack_rows(self.codes, self.bits),
            f"{stem}.qzeros": pack_rows((stored & mask).T, self.bits).T.copy(),
            f"{stem}.scales": self.scales.astype(settings.scales),
        }
        if settings.g_idx:
            parts[f"{stem}.g_idx"] = self.group_of.astype(np.int32)
        return parts


def pack_rows(values, bits):
    """AutoGPTQ's loops: (n, m) to int32 (n * bits / 32, m)."""
    values = np.asarray(values).astype(np.uint32)
    packed = np.zeros((len(values) * bits // 32, values.shape[1]), np.uint32)
    if bits == 3:
        _pack_rows_3(values, packed)
    else:
        per_word = 32 // bits
        for row in range(len(packed)):
            for j in range(per_word):
                packed[row] |= values[row * per_word + j] << np.uint32(bits * j)
    return packed.view(np.int32)


def _pack_rows_3(values, packed):
    i = row = 0
    while row < len(packed):
        for j in range(i, i + 10):
            packed[row] |= values[j] << np.uint32(3 * (j - i))
        i += 10
        packed[row] |= values[i] << np.uint32(30)
        row += 1
        packed[row] |= (values[i] >> np.uint32(2)) & np.uint32(1)
        i += 1
        for j in range(i, i + 10):
            packed[row] |= values[j] << np.uint32(3 * (j - i) + 1)
        i += 10
        packed[row] |= values[i] << np.uint32(31)
        row += 1
        packed[row] |= (values[i] >> np.uint32(1)) & np.uint32(3)
        i += 1
        for j in range(i, i + 10):
            packed[row] |= values[j] << np.uint32(3 * (j - i) + 2)
        i += 10
        row += 1


def quantise(weight, settings, rng):
    """Round a matrix (O, I) to the nearest; `rng` draws the order, as activations would."""
    inputs = weight.shape[1]
    size = inputs if settings.group_size == -1 else settings.group_size
    group_of = np.arange(inputs) // size
    if settings.act_order and not settings.static_groups:
        group_of = np.empty(inputs, int)
        group_of[rng.permutation(inputs)] = np.arange(inputs) // size
    groups = group_of.max() + 1
    top = (1 << settings.bits) - 1
    scales = np.empty((groups, len(weight)), np.float64)
    zeros = np.empty((groups, len(weight)), np.int64)
    for g in range(groups):
        part = weight[:, group_of == g]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if settings.sym:
            high = np.maximum(np.abs(low), high)
            low = -high
        scales[g] = (high - low) / top
        zeros[g] = (top + 1) // 2 if settings.sym else np.round(-low / scales[g])
    scales = scales.astype(settings.scales)
    codes = np.round(weight.T / scales.astype(np.float64)[group_of]) + zeros[group_of]
    codes = np.clip(codes, 0, top).astype(np.uint8)
    return Quantised(settings.bits, codes, zeros.astype(np.uint8), scales, group_of)


def network_tensors(raw):
    """Names and shapes of a StableLM's or Llama's tensors; the quantised ones apart."""
    hidden, inner, vocab = raw["hidden_size"], raw["intermediate_size"], raw["vocab_size"]
    kv = hidden // raw["num_attention_heads"] * raw["num_key_value_heads"]
    norms = ("weight", "bias") if raw["model_type"] == "stablelm" else ("weight",)
    matrices = {}
    others = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    names = ["model.norm"]
    for layer in range(raw["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for letter, width in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            matrices[f"{prefix}self_attn.{letter}_proj"] = (width, hidden)
        matrices[f"{prefix}mlp.gate_proj"] = matrices[f"{prefix}mlp.up_proj"] = (inner, hidden)
        matrices[f"{prefix}mlp.down_proj"] = (hidden, inner)
        names += [f"{prefix}input_layernorm", f"{prefix}post_attention_layernorm"]
    others |= {f"{name}.{part}": (hidden,) for name in names for part in norms}
    return matrices, others


def same_inputs(stem):
    """Matrices with one answer read the same activations, hence are ordered alike."""
    prefix, _, leaf = stem.rpartition(".")
    shared = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gu", "up_proj": "gu"}
    return f"{prefix}.{shared.get(leaf, leaf)}"


def make(raw, settings, seed=0):
    """The whole network: matrices quantised, other tensors float16."""
    rng = np.random.RandomState(seed)
    shapes, others = network_tensors(raw)
    families = {}
    quantised = {}
    for stem, shape in shapes.items():
        weight = rng.standard_normal(shape) * 0.02
        order_seed = families.setdefault(same_inputs(stem), len(families) + 1000 * seed)
        order = np.random.RandomState(order_seed)
        quantised[stem] = quantise(weight, settings.of(stem), order)
    ordinary = {
        name: (rng.standard_normal(shape) * 0.02 + ("norm.weight" in name)).astype(np.float16)
        for name, shape in others.items()
    }
    return quantised, ordinary


def quantize_config(settings):
    """AutoGPTQ's file; old versions have no checkpoint_format, which means the first."""
    config = {
        "bits": settings.bits,
        "group_size": settings.group_size,
        "damp_percent": 0.1,
        "desc_act": settings.act_order,
        "static_groups": settings.static_groups,
        "sym": settings.sym,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": "model",
    }
    if settings.stored_as != "gptq":
        config["checkpoint_format"] = settings.stored_as
    if settings.overrides:
        config["dynamic"] = {f"+:.*{end}$": o for end, o in settings.overrides.items()}
    return config


def write_gptq(path, raw, settings, seed=0, zero_biases=False, inside_config=False, change=None):
    """Write a checkpoint's directory.

    Args:
        path: the directory to make.
        raw: config.json, STABLELM or LLAMA.
        settings: how to quantise.
        seed: of weights and orders.
        zero_biases: add a zero bias to every matrix, as old writers do.
        inside_config: put the settings into config.json instead of quantize_config.json.
        change: a function that edits the tensors in place before they are written.

    Returns:
        The quantised matrices by name without `.weight`, and the other tensors.
    """
    path.mkdir(parents=True, exist_ok=True)
    quantised, ordinary = make(raw, settings, seed)
    tensors = dict(ordinary)
    for stem, matrix in quantised.items():
        tensors |= matrix.tensors(stem, settings.of(stem))
        if zero_biases:
            tensors[f"{stem}.bias"] = np.zeros(matrix.codes.shape[1], np.float16)
    if change is not None:
        change(tensors)
    config = quantize_config(settings)
    if inside_config:
        raw = {**raw, "quantization_config": {**config, "quant_method": "gptq"}}
    else:
        (path / "quantize_config.json").write_text(json.dumps(config))
    (path / "config.json").write_text(json.dumps(raw))
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(path, raw["vocab_size"])
    return quantised, ordinary

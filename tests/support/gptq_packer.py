"""GPTQ checkpoints made from the format's definition, without GPTQ's error compensation."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
from safetensors.numpy import save_file

from edge.convert.sources.directory import read_gptq_settings
from edge.convert.sources.gptq import GptqWeights
from edge.formats.folder import read_weights
from edge.model.config import ModelConfig
from tests.support import tiny
from tests.support.tiny import write_tokenizer

# Inputs allow groups of 128; down_proj has more groups than the others.
SHAPE = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4}
SHAPE |= {"max_position_embeddings": 128, "rope_theta": 1_000_000}
STABLELM = {**tiny.PLAIN, **SHAPE, "num_key_value_heads": 2}
LLAMA = {**tiny.LLAMA, **SHAPE, "num_key_value_heads": 4, "architectures": ["LlamaForCausalLM"]}
LLAMA |= {"bos_token_id": 0, "eos_token_id": 0}
ONE_LAYER = {**STABLELM, "num_hidden_layers": 1}
LAYER = "model.layers.0."
Q, K, V, O = (f"{LAYER}self_attn.{letter}_proj.weight" for letter in "qkvo")  # noqa: E741
GATE, UP, DOWN = (f"{LAYER}mlp.{name}_proj.weight" for name in ("gate", "up", "down"))


@dataclass(frozen=True)
class Settings:
    """How to quantise; `overrides` are fields by the end of a matrix's name."""

    bits: int = 4
    group_size: int = 128
    act_order: bool = True
    static_groups: bool = False
    sym: bool = True
    stored_as: str = "gptq"
    g_idx: bool = True
    overrides: dict = field(default_factory=dict)

    def of(self, name):
        own = next((o for ending, o in self.overrides.items() if name.endswith(ending)), {})
        return replace(self, **own)


@dataclass(frozen=True)
class Quantised:
    """W[o, i] = scale[g, o] * (code[i, o] - zero[g, o])."""

    bits: int
    codes: np.ndarray  # (I, O)
    zeros: np.ndarray  # (G, O)
    scales: np.ndarray  # (G, O)
    group_of: np.ndarray  # (I,)

    def dense(self):
        """float64 (O, I); float32 holds it exactly."""
        scales = self.scales.astype(np.float64)[self.group_of]
        return (scales * (self.codes.astype(int) - self.zeros.astype(int)[self.group_of])).T

    def in_turn(self):
        """The order that makes groups contiguous."""
        return np.argsort(self.group_of, kind="stable")

    def tensors(self, stem, settings):
        stored = self.zeros.astype(int) - (settings.stored_as == "gptq")
        stored &= (1 << self.bits) - 1
        parts = {
            f"{stem}.qweight": pack_rows(self.codes, self.bits),
            f"{stem}.qzeros": pack_rows(stored.T, self.bits).T.copy(),
            f"{stem}.scales": self.scales,
        }
        if settings.g_idx:
            parts[f"{stem}.g_idx"] = self.group_of.astype(np.int32)
        return parts


def pack_rows(values, bits):
    """(n, m) to int32 (n * bits / 32, m): a stream of numbers, lowest bits first."""
    values = np.asarray(values).astype(np.uint8)
    stream = np.unpackbits(values[:, None], axis=1, count=bits, bitorder="little")
    words = stream.reshape(-1, 32, values.shape[1]).astype(np.uint32)
    return (words << np.arange(32, dtype=np.uint32)[:, None]).sum(1, dtype=np.uint32).view(np.int32)


def quantise(weight, settings, rng):
    """Round a matrix (O, I) to the nearest; `rng` draws the input order."""
    inputs = weight.shape[1]
    size = inputs if settings.group_size == -1 else settings.group_size
    group_of = np.arange(inputs) // size
    if settings.act_order and not settings.static_groups:
        group_of[rng.permutation(inputs)] = np.arange(inputs) // size
    groups, top = group_of.max() + 1, (1 << settings.bits) - 1
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
    scales = scales.astype(np.float16)
    codes = np.round(weight.T / scales.astype(np.float64)[group_of]) + zeros[group_of]
    codes = np.clip(codes, 0, top).astype(np.uint8)
    return Quantised(settings.bits, codes, zeros.astype(np.uint8), scales, group_of)


def make(raw, settings, head, plain):
    """Quantised matrices by name without `.weight`, and other tensors in float16."""
    rng = np.random.RandomState(0)
    quantised, ordinary, families = {}, {}, {}
    for name, array in tiny.random_tensors(ModelConfig.from_dict(raw)).items():
        stem = name.removesuffix(".weight")
        is_matrix = stem.endswith("_proj") and name != f"{stem}.bias"
        if not (is_matrix or (head and name == "lm_head.weight")) or stem.endswith(plain or "-"):
            ordinary[name] = array.astype(np.float16)
            continue
        # Matrices with the same inputs have the same order.
        prefix, _, leaf = stem.rpartition(".")
        shared = {"q_proj": "k_proj", "v_proj": "k_proj", "gate_proj": "up_proj"}.get(leaf, leaf)
        order = families.setdefault((prefix, shared), len(families))
        weight = rng.standard_normal(array.shape) * 0.02
        quantised[stem] = quantise(weight, settings.of(stem), np.random.RandomState(order))
    return quantised, ordinary


def write_gptq(
    path, raw, settings, zero_biases=False, inside_config=False, change=None, head=False, plain=None
):
    """Write a checkpoint's directory and return what `make` does; `change` edits the tensors.

    `head`: the head is quantised too; `plain`: the end of names of matrices that are not.
    """
    path.mkdir(parents=True, exist_ok=True)
    quantised, ordinary = make(raw, settings, head, plain)
    tensors = dict(ordinary)
    for stem, matrix in quantised.items():
        tensors |= matrix.tensors(stem, settings.of(stem))
        if zero_biases:
            tensors[f"{stem}.bias"] = np.zeros(matrix.codes.shape[1], np.float16)
    if change is not None:
        change(tensors)
    config = {"bits": settings.bits, "group_size": settings.group_size, "sym": settings.sym}
    config |= {"desc_act": settings.act_order, "static_groups": settings.static_groups}
    if settings.stored_as != "gptq":  # old versions write no checkpoint_format
        config["checkpoint_format"] = settings.stored_as
    if inside_config:
        raw = {**raw, "quantization_config": {**config, "quant_method": "gptq"}}
    else:
        (path / "quantize_config.json").write_text(json.dumps(config))
    (path / "config.json").write_text(json.dumps(raw))
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(path, raw["vocab_size"])
    return quantised, ordinary


def open_gptq(path):
    raw = json.loads((path / "config.json").read_text())
    settings = read_gptq_settings(raw, path)
    return GptqWeights(read_weights(path), settings, ModelConfig.from_dict(raw))


def one_layer(path, how=Settings(), **options):
    """The matrices of one layer, and its weights opened."""
    matrices, _ = write_gptq(path, ONE_LAYER, how, **options)
    return matrices, open_gptq(path)

"""Tiny checkpoints with every switch of both families."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors.numpy import load_file, save_file

from edge.model.config import ModelConfig
from edge.model.stablelm import Model
from edge.model.tensors import expected_shapes

PLAIN = {
    "model_type": "stablelm",
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "rope_theta": 10000,
    "partial_rotary_factor": 0.25,
    "layer_norm_eps": 1e-5,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 0,
}

TWO_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
# One per switch, then the published combinations at their real head sizes.
CONFIGS = {
    "plain": PLAIN,
    "theta-1e6": {**PLAIN, "rope_theta": 1_000_000},
    "half-rotary": {**PLAIN, "partial_rotary_factor": 0.5},
    "qkv-bias": {**PLAIN, "use_qkv_bias": True},
    "qk-layernorm": {**PLAIN, "qk_layernorm": True},
    "parallel": {**PLAIN, "use_parallel_residual": True},
    "grouped": {**PLAIN, "num_key_value_heads": 2},
    "tied": {**PLAIN, "tie_word_embeddings": True},
    "stable-code": {**PLAIN, "hidden_size": 160, **TWO_HEADS, "rope_theta": 1_000_000},
    "stablelm-2-12b": {
        **PLAIN,
        "hidden_size": 320,
        **TWO_HEADS,
        "num_key_value_heads": 1,
        "qk_layernorm": True,
        "use_parallel_residual": True,
    },
}

# Not in CONFIGS, as these are not StableLM.
STABLELM_KEYS = (
    "partial_rotary_factor",
    "layer_norm_eps",
    "qk_layernorm",
    "use_parallel_residual",
    "use_qkv_bias",
)
LLAMA = {key: value for key, value in PLAIN.items() if key not in STABLELM_KEYS} | {
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_CONFIGS = {
    "llama": LLAMA,
    "llama-grouped": {**LLAMA, "num_key_value_heads": 2},
    "llama-tied": {**LLAMA, "tie_word_embeddings": True},
    "llama-bias": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "code-llama": {**LLAMA, "hidden_size": 256, **TWO_HEADS, "rope_theta": 1_000_000},
}
# Trained on 16 positions: the 40 tokens of the tests go far beyond.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS = {
    "linear": {"type": "linear", "factor": 4.0},  # as transformers 4 spelled it at first
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False},
    "yarn-gain": {**YARN, "attention_factor": 0.9, "beta_fast": 8.0, "beta_slow": 2.0},
}
HALF = {**PLAIN, "partial_rotary_factor": 0.5}
SCALED_CONFIGS = {
    f"{raw['model_type']}-{name}": {**raw, "rope_scaling": scaling}
    for raw in (HALF, LLAMA)
    for name, scaling in SCALINGS.items()
}
# Its frequencies follow the length of the context, so it is apart: only whole prompts agree.
DYNAMIC_CONFIGS = {
    f"{raw['model_type']}-dynamic": {
        **raw,
        "max_position_embeddings": 16,
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
    }
    for raw in (HALF, LLAMA)
}
ALL_CONFIGS = CONFIGS | LLAMA_CONFIGS | SCALED_CONFIGS | DYNAMIC_CONFIGS


# What mx.quantize can do, with the smallest groups.
MODES = {
    "affine": {"group_size": 32, "bits": 4},
    "mxfp4": {"group_size": 32, "bits": 4},
    "nvfp4": {"group_size": 16, "bits": 4},
    "mxfp8": {"group_size": 32, "bits": 8},
}


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 weights by Hugging Face name; RandomState's stream is the same in every numpy."""
    rng = np.random.RandomState(seed)
    tensors = {}
    for name, shape in sorted(expected_shapes(config).items()):
        noise = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("norm.weight") or ".norms." in name:
            tensors[name] = 1 + 0.2 * noise
        elif name.endswith("bias"):
            tensors[name] = 0.2 * noise
        elif name == "model.embed_tokens.weight":
            tensors[name] = noise
        else:
            tensors[name] = noise / np.float32(np.sqrt(shape[-1]))
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def token_ids(config: ModelConfig, length: int = 40, seed: int = 1) -> np.ndarray:
    """Ids (1, length)."""
    return np.random.RandomState(seed).randint(0, config.vocab_size, (1, length))


def tiny_model(raw: dict, seed: int = 0) -> Model:
    """A network with random weights, without fused matrices."""
    model = Model(ModelConfig.from_dict(raw))
    tensors = {name: mx.array(array) for name, array in random_tensors(model.config, seed).items()}
    model.load_weights(list(model.sanitize(tensors).items()))
    return model


def quantised_tensors(tensors: dict, how: dict, own: dict | None = None) -> dict:
    """Matrices quantised by `how`, or by `own` of their path; False there keeps one in float.

    Matrices whose columns do not divide into groups stay in float too.
    """
    out = {}
    for name, array in tensors.items():
        stem = name.removesuffix(".weight")
        recipe = (own or {}).get(stem, how)
        if array.ndim != 2 or recipe is False or array.shape[1] % recipe["group_size"]:
            out[name] = array
            continue
        parts = mx.quantize(mx.array(array), **recipe)
        out |= zip((name, f"{stem}.scales", f"{stem}.biases"), parts, strict=False)
    return out


def write_quantised(path: Path, raw: dict, how: dict, changes: dict | None = None) -> Path:
    """An artefact with mlx-lm's `quantization` settings `how`, and changed tensors."""
    top = {key: how[key] for key in ("group_size", "bits", "mode") if key in how}
    tensors = quantised_tensors(random_tensors(ModelConfig.from_dict(raw)), top, how)
    tensors = {name: a for name, a in (tensors | (changes or {})).items() if a is not None}
    return write_checkpoint(path, {**raw, "quantization": how}, tensors=tensors)


def write_checkpoint(path: Path, raw: dict, seed: int = 0, tensors: dict | None = None) -> Path:
    """A Hugging Face directory with float32 weights, or others, and a byte-level tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(raw))
    config, file = ModelConfig.from_dict(raw), path / "model.safetensors"
    if tensors is None:
        save_file(random_tensors(config, seed), file, metadata={"format": "pt"})
    else:
        arrays = {name: mx.array(array) for name, array in tensors.items()}
        mx.save_safetensors(str(file), arrays)
    write_tokenizer(path, config.vocab_size)
    return path


def write_tokenizer(path: Path, vocab_size: int) -> None:
    """GPT-2's byte alphabet cut to the vocabulary, one merge ("!!"), one special token."""
    letters = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 512))]
    vocab = {"<|endoftext|>": 0} | {c: i + 1 for i, c in enumerate(letters[: vocab_size - 2])}
    vocab["!!"] = vocab_size - 1
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 0, "content": "<|endoftext|>", "special": True, **special}],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["! !"]},
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def edit(path: Path, name: str, change) -> None:
    """Change a JSON file's content."""
    content = json.loads((path / name).read_text())
    change(content)
    (path / name).write_text(json.dumps(content))


def edit_tensors(path: Path, change) -> None:
    """Change the tensors."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")

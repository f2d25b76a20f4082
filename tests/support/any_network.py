"""Tiny networks of other architectures than edge's, with random weights."""

import importlib
import json
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from tests.support.foreign_gguf import TINY_SHAPES, write_tiny

ATTENTION = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 100},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6},
    **{"head_dim": 16, "max_position_embeddings": 256, "tie_word_embeddings": True},
}
EXPERTS = {
    **{"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    **{"decoder_sparse_step": 1, "mlp_only_layers": [], "rope_theta": 1e4, "norm_topk_prob": True},
}
CONFIGS = {
    "qwen2": ATTENTION,
    "qwen3_moe": ATTENTION | EXPERTS | {"tie_word_embeddings": False},
    "gemma3_text": ATTENTION | {"sliding_window": 8, "sliding_window_pattern": 2},
    "mamba": {
        **{"vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "state_size": 8},
        **{"num_hidden_layers": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True},
        "time_step_rank": 4,
    },
}
QWEN2_KEYS = {
    **{"context_length": 64, "embedding_length": 64, "block_count": 1, "feed_forward_length": 96},
    **{"attention.head_count": 2, "attention.head_count_kv": 1},
    "attention.layer_norm_rms_epsilon": 1e-5,
}
QWEN2_SHAPES = {name: None for name in TINY_SHAPES if name.endswith(".bias")}
MAMBA_KEYS = {
    **{"context_length": 64, "embedding_length": 64, "block_count": 1, "feed_forward_length": 0},
    **{"attention.head_count": 0, "attention.layer_norm_rms_epsilon": 1e-5},
    **{"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 8, "ssm.time_step_rank": 4},
}
MAMBA_SHAPES = {
    **{name: None for name in TINY_SHAPES if name.endswith(".bias") or name.startswith("blk.")},
    **{"blk.0.attn_norm.weight": (64,), "blk.0.ssm_in.weight": (256, 64)},
    **{"blk.0.ssm_conv1d.weight": (128, 4), "blk.0.ssm_conv1d.bias": (128,)},
    **{"blk.0.ssm_x.weight": (20, 128), "blk.0.ssm_dt.weight": (128, 4)},
    **{"blk.0.ssm_dt.bias": (128,), "blk.0.ssm_a": (128, 8), "blk.0.ssm_d": (128,)},
    "blk.0.ssm_out.weight": (64, 128),
}


def write_mlx(path: Path, kind: str, bits: int | None = None) -> Path:
    """A directory without a tokenizer, in bfloat16 or quantised in groups of 32."""
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    config = CONFIGS[kind] | {"model_type": kind}
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    if bits:
        config["quantization"] = {"group_size": 32, "bits": bits}
        nn.quantize(model, **config["quantization"])
    model.set_dtype(mx.bfloat16)
    path.mkdir(parents=True)
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (path / "config.json").write_text(json.dumps(config))
    return path


def write_gguf(path: Path, kind: str) -> Path:
    """A GGUF file of a qwen2 or mamba."""
    keys, shapes = {"qwen2": (QWEN2_KEYS, QWEN2_SHAPES), "mamba": (MAMBA_KEYS, MAMBA_SHAPES)}[kind]
    named = {f"{kind}.{key}": value for key, value in keys.items()}
    return write_tiny(path, {"general.architecture": kind, **named}, shapes, scale=0.1)

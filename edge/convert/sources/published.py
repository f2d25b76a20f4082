"""Shapes of the published models, and a check of configs against them."""

import re
from collections.abc import Iterable
from dataclasses import replace

from edge.model.config import DEFAULT_ROPE_THETA, ModelConfig

STABLE_CODE = re.compile(r"stable[-_. ]?code", re.IGNORECASE)
STABLE_CODE_ROPE_THETA = 1_000_000.0
STABLE_CODE_CONTEXT = 16384

_3B = ModelConfig(
    vocab_size=50304,
    hidden_size=2560,
    intermediate_size=6912,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=4096,
)
_STABLELM_2 = replace(_3B, vocab_size=100352, bos_token_id=100257, eos_token_ids=(100257,))
# From the config.json files on the hub.
SHAPES = {
    "stable-code-3b": replace(
        _3B, rope_theta=STABLE_CODE_ROPE_THETA, max_position_embeddings=STABLE_CODE_CONTEXT
    ),
    "stablelm-3b-4e1t": _3B,
    "stablelm-2-1_6b": replace(
        _STABLELM_2,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=24,
        use_qkv_bias=True,
    ),
    "stablelm-2-12b": replace(
        _STABLELM_2,
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_key_value_heads=8,
        qk_layernorm=True,
        use_parallel_residual=True,
    ),
}


def rope_base_looks_wrong(config: ModelConfig, *names: str | None) -> bool:
    """True for Stable Code 3B, by name or context, with the default rotary base.

    This concerns its revision 84383c2, and every GGUF file that llama.cpp's own converter made.
    """
    long_context = config.max_position_embeddings == STABLE_CODE_CONTEXT
    return config.rope_theta == DEFAULT_ROPE_THETA and (long_context or _is_named(names))


def config_warnings(config: ModelConfig, *names: str | None, gives_base: bool = True) -> list[str]:
    """Warnings about values other than the model was trained with.

    `gives_base` is false for a GGUF file without a rotary base, which means 10000.
    """
    wrong = []
    if rope_base_looks_wrong(config, *names):
        found, remedy = f"rope_theta is {config.rope_theta:.0f}", ""
        if not gives_base:
            found = f"the file gives no rotary base, so llama.cpp takes {config.rope_theta:.0f}"
            remedy = ", or make a corrected copy with 'edge convert MODEL --to gguf-mended',"
        wrong.append((found, STABLE_CODE_ROPE_THETA, "--rope-theta", remedy))
    if _is_named(names) and config.max_position_embeddings != STABLE_CODE_CONTEXT:
        found = f"the context is {config.max_position_embeddings} tokens"
        wrong.append((found, STABLE_CODE_CONTEXT, "--context", ""))
    return [
        f"{found}, but Stable Code 3B was trained with {wanted:.0f}: add {flag} {wanted:.0f}"
        f"{remedy} unless this is another model."
        for found, wanted, flag, remedy in wrong
    ]


def _is_named(names: Iterable[str | None]) -> bool:
    return any(name and STABLE_CODE.search(name) for name in names)

"""Every published config.json as the network that it describes, and what is refused."""

import pytest
from transformers import LlamaConfig

from edge.errors import EdgeError
from edge.model.config import ModelConfig
from edge.model.tensors import check_shapes, expected_shapes, parameter_count
from tests.support.tiny import ALL_CONFIGS, LLAMA, LLAMA3, LLAMA_CONFIGS, PLAIN

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
HEADS = ("num_attention_heads", "num_key_value_heads")
STABLE_CODE_3B = {
    **PLAIN,
    **dict(zip(SIZES, (50304, 2560, 6912, 32), strict=True)),
    **dict.fromkeys(HEADS, 32),
    "max_position_embeddings": 16384,
    "rope_theta": 1_000_000,
}
RENAMED = ("layer_norm_eps", "partial_rotary_factor", "num_attention_heads")
EPOCH_SPELLING = {key: value for key, value in STABLE_CODE_3B.items() if key not in RENAMED} | {
    "model_type": "stablelm_epoch",
    "norm_eps": 1e-5,
    "rope_pct": 0.25,
    "num_heads": 32,
    "rotary_scaling_factor": 1.0,
}
ROPE = {"rope_theta": 1_000_000, "partial_rotary_factor": 0.25, "rope_type": "default"}
TRANSFORMERS_5 = {
    **{k: v for k, v in STABLE_CODE_3B.items() if not k.startswith(("rope", "partial"))},
    "rope_parameters": ROPE,
}
CODE_LLAMA_13B = {
    **LLAMA,
    **dict(zip(SIZES, (32016, 5120, 13824, 40), strict=True)),
    **dict.fromkeys(HEADS, 40),
    "rope_theta": 1_000_000,
    "rope_scaling": None,
}


@pytest.mark.parametrize("raw", [STABLE_CODE_3B, EPOCH_SPELLING, TRANSFORMERS_5])
def test_every_published_spelling_describes_the_same_network(raw):
    config = ModelConfig.from_dict(raw)
    assert config == ModelConfig.from_dict(STABLE_CODE_3B)
    assert (config.head_dim, config.rotary_dims, config.rope_theta) == (80, 20, 1e6)
    assert parameter_count(config) == 2_795_443_200  # Stable Code report, table 4


def test_code_llama_13b():
    config = ModelConfig.from_dict(CODE_LLAMA_13B)
    assert (config.model_type, config.head_dim, config.rotary_dims) == ("llama", 128, 128)
    assert (config.layer_norm_eps, config.rope_theta) == (1e-5, 1e6)
    # Llama 2 13B has 13,015,864,320; Code Llama 16 more tokens in both tables.
    assert parameter_count(config) == 13_015_864_320 + 2 * 16 * 5120


def test_defaults_of_a_llama_are_transformers():
    raw = {k: LLAMA[k] for k in ("model_type", *SIZES, "num_attention_heads")}
    assert ModelConfig.from_dict(raw) == ModelConfig.from_dict(LlamaConfig(**raw).to_dict())
    assert ModelConfig.from_dict({**raw, "eos_token_id": None}).eos_token_ids == ()


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_our_config_is_read_by_us_and_by_transformers(name):
    config = ModelConfig.from_dict(ALL_CONFIGS[name])
    assert ModelConfig.from_dict(config.to_dict()) == config
    if config.model_type == "llama":
        theirs = LlamaConfig.from_dict(config.to_dict())
        assert ModelConfig.from_dict(theirs.to_dict()) == config
        assert (theirs.attention_bias, theirs.mlp_bias) == (config.use_o_bias, config.use_mlp_bias)


def test_qkv_bias_follows_the_tensors():
    config = ModelConfig.from_dict(PLAIN)
    assert config.matching({"model.layers.0.self_attn.q_proj.bias"}).use_qkv_bias
    llama = ModelConfig.from_dict(LLAMA_CONFIGS["llama-bias"]).matching(set())
    assert (llama.use_qkv_bias, llama.use_o_bias, llama.use_mlp_bias) == (False, True, True)
    assert ModelConfig.from_dict(llama.to_dict()) == llama


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mistral"}, "'mistral'"),
        ({"model_type": ["llama"]}, r"\['llama'\]"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": -1}, "hidden_size is -1, not a positive whole number"),
        ({"num_attention_heads": 3}, "num_attention_heads 3"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
        ({"use_qkv_bias": "false"}, "use_qkv_bias is 'false', not true or false"),
        ({"rope_parameters": "default"}, "must be JSON objects"),
        ({"rope_parameters": {"rope_type": []}}, r"rope scaling \[\] is not supported"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "rope scaling 'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, "factor of the rope scaling is None"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor of the rope scaling is '4'"),
        ({"sliding_window": 64}, "sliding_window 64 is not supported"),
        ({"eos_token_id": [0, None]}, "eos_token_id"),
        ({**LLAMA, "head_dim": 32}, "head_dim is 32"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "rotates whole heads"),
        ({**LLAMA, "rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor of"),
        (
            {**LLAMA, "rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}},
            "1.0 is not below high_freq_factor 1.0",
        ),
        ({**LLAMA, "eos_token_id": 160}, "eos_token_id is 160"),
    ],
    ids=lambda change: str(change)[-40:],
)
def test_a_config_that_cannot_run_is_refused(change, words):
    with pytest.raises(EdgeError, match=words) as error:
        ModelConfig.from_dict({**PLAIN, **change})
    assert "\n" not in str(error.value)


def test_check_shapes_names_the_tensor():
    config = ModelConfig.from_dict(PLAIN)
    shapes = expected_shapes(config)
    check_shapes(config, {**shapes, "model.layers.0.self_attn.rotary_emb.inv_freq": (8,)}, "x")
    missing = {k: v for k, v in shapes.items() if k != "model.norm.bias"}
    with pytest.raises(EdgeError, match=r"model\.norm\.bias .* is missing"):
        check_shapes(config, missing, "x")
    with pytest.raises(EdgeError, match=r"lm_head\.weight has shape \[1, 2\]"):
        check_shapes(config, {**shapes, "lm_head.weight": (1, 2)}, "x")
    llama = ModelConfig.from_dict(LLAMA)
    with pytest.raises(EdgeError, match=r"model\.norm\.bias is not part of a llama"):
        check_shapes(llama, {**expected_shapes(llama), "model.norm.bias": (64,)}, "x")

"""Published spellings of config.json, and invalid ones."""

from contextlib import nullcontext

import pytest
from transformers import LlamaConfig

from edge.errors import EdgeError
from edge.model.config import ModelConfig
from edge.model.tensors import check_shapes, expected_shapes, parameter_count
from tests.support.tiny import ALL_CONFIGS, LLAMA, LLAMA3, LLAMA_CONFIGS, PLAIN

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
HEADS = ("num_attention_heads", "num_key_value_heads")


def published(raw, sizes, heads, **own):
    shape = dict(zip(SIZES, sizes, strict=True)) | dict.fromkeys(HEADS, heads)
    return {**raw, **shape, "rope_theta": 1_000_000, **own}


STABLE_CODE_3B = published(PLAIN, (50304, 2560, 6912, 32), 32, max_position_embeddings=16384)
CODE_LLAMA_13B = published(LLAMA, (32016, 5120, 13824, 40), 40, rope_scaling=None)
EPOCH = {"layer_norm_eps": "norm_eps", "partial_rotary_factor": "rope_pct"}
EPOCH |= {"num_attention_heads": "num_heads"}
STABLELM_EPOCH = {EPOCH.get(key, key): value for key, value in STABLE_CODE_3B.items()}
STABLELM_EPOCH |= {"model_type": "stablelm_epoch", "rotary_scaling_factor": 1.0}
ROPE = {"rope_theta": 1_000_000, "partial_rotary_factor": 0.25, "rope_type": "default"}
TRANSFORMERS_5 = {key: value for key, value in STABLE_CODE_3B.items() if key not in ROPE}
TRANSFORMERS_5["rope_parameters"] = ROPE


@pytest.mark.parametrize("raw", [STABLE_CODE_3B, STABLELM_EPOCH, TRANSFORMERS_5])
def test_all_spellings_describe_the_same_network(raw):
    config = ModelConfig.from_dict(raw)
    assert config == ModelConfig.from_dict(STABLE_CODE_3B)
    assert (config.head_dim, config.rotary_dims, config.rope_theta) == (80, 20, 1e6)
    assert parameter_count(config) == 2_795_443_200  # Stable Code report, table 4


def test_code_llama_13b():
    config = ModelConfig.from_dict(CODE_LLAMA_13B)
    assert (config.model_type, config.head_dim, config.rotary_dims) == ("llama", 128, 128)
    # Llama 2 13B has 13,015,864,320; Code Llama 16 more tokens in both tables.
    assert parameter_count(config) == 13_015_864_320 + 2 * 16 * 5120


def test_defaults_of_a_llama_match_transformers():
    raw = {k: LLAMA[k] for k in ("model_type", *SIZES, "num_attention_heads")}
    assert ModelConfig.from_dict(raw) == ModelConfig.from_dict(LlamaConfig(**raw).to_dict())
    assert ModelConfig.from_dict({**raw, "eos_token_id": None}).eos_token_ids == ()


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_a_written_config_is_read_by_edge_and_transformers(name):
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
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": -1}, "hidden_size is -1, not a positive whole number"),
        ({"num_attention_heads": 3}, "num_attention_heads 3"),
        ({"rope_parameters": {"rope_type": []}}, r"rope scaling \[\] is not supported"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "rope scaling 'longrope'"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor of the rope scaling is '4'"),
        ({"sliding_window": 64}, "sliding_window 64 is not supported"),
        ({"eos_token_id": [0, 160]}, r"eos_token_id is \[0, 160\], not an id below 160"),
        ({**LLAMA, "head_dim": 32}, "head_dim is 32"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "rotates whole heads"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor of"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "is not below high_freq_factor"),
    ],
    ids=str,
)
def test_an_invalid_config_is_refused(change, words):
    with pytest.raises(EdgeError, match=words) as error:
        ModelConfig.from_dict({**PLAIN, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("raw", "name", "shape", "words"),
    [
        (PLAIN, "model.layers.0.self_attn.rotary_emb.inv_freq", (8,), None),
        (PLAIN, "model.norm.bias", None, r"model\.norm\.bias \[64\] is missing"),
        (PLAIN, "lm_head.weight", (1, 2), r"lm_head\.weight has shape \[1, 2\]"),
        (LLAMA, "model.norm.bias", (64,), r"model\.norm\.bias is not part of a llama"),
    ],
)
def test_check_shapes_names_the_tensor(raw, name, shape, words):
    config = ModelConfig.from_dict(raw)
    shapes = {**expected_shapes(config), name: shape}
    found = {name: shape for name, shape in shapes.items() if shape}
    with pytest.raises(EdgeError, match=words) if words else nullcontext():
        check_shapes(config, found, "x")

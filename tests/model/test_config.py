import pytest
from transformers import LlamaConfig

from edge.errors import EdgeError
from edge.model.config import ModelConfig, read_config
from edge.model.tensors import (
    check_shapes,
    expected_shapes,
    input_order_shapes,
    parameter_count,
)
from tests.support.tiny import CONFIGS, LLAMA, LLAMA_CONFIGS, PLAIN

STABLE_CODE_3B = {
    "model_type": "stablelm",
    "vocab_size": 50304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 16384,
    "rope_theta": 1_000_000,
    "partial_rotary_factor": 0.25,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
}
EPOCH_SPELLING = {
    **{k: v for k, v in STABLE_CODE_3B.items() if k not in ("layer_norm_eps",)},
    "model_type": "stablelm_epoch",
    "norm_eps": 1e-5,
    "rope_pct": 0.25,
    "num_heads": 32,
    "rotary_scaling_factor": 1.0,
}
del EPOCH_SPELLING["partial_rotary_factor"], EPOCH_SPELLING["num_attention_heads"]
TRANSFORMERS_5 = {
    **{k: v for k, v in STABLE_CODE_3B.items() if not k.startswith(("rope", "partial"))},
    "rope_parameters": {
        "rope_theta": 1_000_000,
        "partial_rotary_factor": 0.25,
        "rope_type": "default",
    },
}

CODE_LLAMA_13B = {
    "model_type": "llama",
    "vocab_size": 32016,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "max_position_embeddings": 16384,
    "rope_theta": 1_000_000,
    "rope_scaling": None,
    "rms_norm_eps": 1e-5,
    "pretraining_tp": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
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


def test_what_a_llama_config_leaves_out_is_transformers_default():
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    raw = {k: LLAMA[k] for k in ("model_type", *sizes, "num_attention_heads")}
    config, theirs = ModelConfig.from_dict(raw), LlamaConfig(**raw)
    assert config.layer_norm_eps == theirs.rms_norm_eps
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    assert config.num_key_value_heads == theirs.num_key_value_heads
    assert config.max_position_embeddings == theirs.max_position_embeddings
    assert (config.bos_token_id, *config.eos_token_ids) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
    )
    assert config.tie_word_embeddings == theirs.tie_word_embeddings
    assert not (config.use_qkv_bias or config.use_o_bias or config.use_mlp_bias)
    assert ModelConfig.from_dict({**raw, "eos_token_id": None}).eos_token_ids == ()


@pytest.mark.parametrize("name", LLAMA_CONFIGS)
def test_transformers_reads_our_llama_config(name):
    config = ModelConfig.from_dict(LLAMA_CONFIGS[name])
    theirs = LlamaConfig.from_dict(config.to_dict())
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta
    assert theirs.rms_norm_eps == config.layer_norm_eps
    assert (theirs.attention_bias, theirs.mlp_bias) == (config.use_o_bias, config.use_mlp_bias)
    assert theirs.tie_word_embeddings == config.tie_word_embeddings
    assert ModelConfig.from_dict(theirs.to_dict()) == config


@pytest.mark.parametrize("name", CONFIGS | LLAMA_CONFIGS)
def test_to_dict_round_trips(name):
    config = ModelConfig.from_dict((CONFIGS | LLAMA_CONFIGS)[name])
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_tied_head_is_counted_once():
    untied, tied = (ModelConfig.from_dict(CONFIGS[n]) for n in ("plain", "tied"))
    assert parameter_count(untied) - parameter_count(tied) == 160 * 64


def test_qkv_bias_follows_the_tensors():
    config = ModelConfig.from_dict(PLAIN)
    assert config.matching({"model.layers.0.self_attn.q_proj.bias"}).use_qkv_bias
    assert not ModelConfig.from_dict(CONFIGS["qkv-bias"]).matching(set()).use_qkv_bias


def test_qkv_bias_alone_follows_the_tensors_of_a_llama():
    config = ModelConfig.from_dict(LLAMA_CONFIGS["llama-bias"]).matching(set())
    assert (config.use_qkv_bias, config.use_o_bias, config.use_mlp_bias) == (False, True, True)
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mistral"}, "'mistral'"),
        ({"model_type": ["llama"]}, r"\['llama'\]"),
        ({"model_type": None}, "StableLM or Llama family"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_attention_heads": 3}, "num_attention_heads 3"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": "linear"}, "rope scaling"),
        ({"rope_parameters": [1]}, "rope scaling"),
        ({"rope_parameters": {"rope_type": []}}, "rope scaling"),
        ({"bos_token_id": "x"}, "bos_token_id"),
        ({"bos_token_id": 160}, "bos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"eos_token_id": [0, None]}, "eos_token_id"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
    ],
)
def test_a_config_that_cannot_run_is_one_sentence(change, words):
    with pytest.raises(EdgeError, match=words) as error:
        ModelConfig.from_dict({**PLAIN, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"head_dim": 32}, "head_dim is 32"),
        ({"head_dim": "16"}, "head_dim is '16'"),
        ({"partial_rotary_factor": 0.5}, "rotates whole heads"),
        ({"rms_norm_eps": 0}, "layer_norm_eps"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"eos_token_id": 160}, "eos_token_id"),
    ],
)
def test_a_llama_that_cannot_run_is_one_sentence(change, words):
    with pytest.raises(EdgeError, match=words) as error:
        ModelConfig.from_dict({**LLAMA, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "[" * 100_000])
def test_a_broken_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(EdgeError, match=r"config\.json"):
        read_config(path)


def test_a_missing_file_says_what_a_checkpoint_is(tmp_path):
    with pytest.raises(EdgeError, match="is missing"):
        read_config(tmp_path / "config.json")


def test_check_shapes_names_the_tensor():
    config = ModelConfig.from_dict(PLAIN)
    shapes = expected_shapes(config)
    check_shapes(config, {**shapes, "model.layers.0.self_attn.rotary_emb.inv_freq": (8,)}, "x")
    missing = {k: v for k, v in shapes.items() if k != "model.norm.bias"}
    with pytest.raises(EdgeError, match=r"model\.norm\.bias .* is missing"):
        check_shapes(config, missing, "x")
    with pytest.raises(EdgeError, match=r"lm_head\.weight has shape \[1, 2\]"):
        check_shapes(config, {**shapes, "lm_head.weight": (1, 2)}, "x")
    with pytest.raises(EdgeError, match="wte is not part of a stablelm"):
        check_shapes(config, {**shapes, "wte": (1,)}, "x")


def test_a_llama_has_no_norm_bias():
    config = ModelConfig.from_dict(LLAMA)
    shapes = expected_shapes(config)
    assert shapes["model.norm.weight"] == (64,)
    with pytest.raises(EdgeError, match=r"model\.norm\.bias is not part of a llama"):
        check_shapes(config, {**shapes, "model.norm.bias": (64,)}, "x")


def test_input_orders_are_no_weights():
    config = ModelConfig.from_dict({**PLAIN, "num_key_value_heads": 2})
    orders = input_order_shapes(config)
    assert orders["model.layers.1.self_attn.o_order"] == (64,)
    assert len(orders) == 3 * config.num_hidden_layers
    assert not orders.keys() & expected_shapes(config).keys()

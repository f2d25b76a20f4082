import pytest

from edge.errors import EdgeError
from edge.model.config import ModelConfig, read_config
from edge.model.tensors import check_shapes, expected_shapes, parameter_count
from tests.support.tiny import CONFIGS, PLAIN

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


@pytest.mark.parametrize("raw", [STABLE_CODE_3B, EPOCH_SPELLING, TRANSFORMERS_5])
def test_every_published_spelling_describes_the_same_network(raw):
    config = ModelConfig.from_dict(raw)
    assert config == ModelConfig.from_dict(STABLE_CODE_3B)
    assert (config.head_dim, config.rotary_dims, config.rope_theta) == (80, 20, 1e6)
    assert parameter_count(config) == 2_795_443_200  # Stable Code report, table 4


@pytest.mark.parametrize("name", CONFIGS)
def test_to_dict_round_trips(name):
    config = ModelConfig.from_dict(CONFIGS[name])
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_tied_head_is_counted_once():
    untied, tied = (ModelConfig.from_dict(CONFIGS[n]) for n in ("plain", "tied"))
    assert parameter_count(untied) - parameter_count(tied) == 160 * 64


def test_qkv_bias_follows_the_tensors():
    config = ModelConfig.from_dict(PLAIN)
    assert config.matching({"model.layers.0.self_attn.q_proj.bias"}).use_qkv_bias
    assert not ModelConfig.from_dict(CONFIGS["qkv-bias"]).matching(set()).use_qkv_bias


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"model_type": None}, "StableLM family"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_attention_heads": 3}, "num_attention_heads 3"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": "linear"}, "is no object"),
        ({"rope_parameters": [1]}, "is no object"),
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
    with pytest.raises(EdgeError, match="wte is not part"):
        check_shapes(config, {**shapes, "wte": (1,)}, "x")

"""GGUF files as a source against llama.cpp and the gguf package."""

import contextlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from tokenizers import Tokenizer

from edge.convert.fix_gguf import ROPE_BASE_KEY
from edge.convert.sources.gguf import DECODED, GgufWeights, open_gguf
from edge.errors import EdgeError
from edge.formats.files import DEMO_PATH
from edge.formats.gguf import block_size, read_gguf
from edge.formats.safetensors import read_header
from edge.llama_cpp.session import LlamaSession
from edge.llama_cpp.vocabulary import read_tokenizer
from edge.model.config import ModelConfig
from edge.model.tensors import check_shapes
from tests.support.conversions import widened
from tests.support.foreign_gguf import TINY_TOKENIZER, finish, write_tiny

TOKENS, TYPES = (TINY_TOKENIZER[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
Q_PROJ = "model.layers.{}.self_attn.q_proj.weight"
AFFINE = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5}


def random_blocks(kind, rng) -> np.ndarray:
    """16 rows (16, row bytes) of 512 finite weights."""
    items, size = block_size(kind)
    blocks = rng.integers(0, 256, (16 * 512 // items, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        infinite = ~np.isfinite(dequantize(blocks, Kind[kind])).all(axis=1)
    blocks[infinite] &= 0xBF  # no exponent of all ones
    return blocks.reshape(16, -1)


def weights_of(path: Path, raw: np.ndarray, kind: str) -> GgufWeights:
    writer = gguf.GGUFWriter(str(path), "stablelm")
    writer.add_tensor("blk.0.attn_q.weight", raw, raw_dtype=Kind[kind])
    finish(writer)
    return GgufWeights(read_gguf(path))


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("kinds") / "kinds.gguf"
    writer = gguf.GGUFWriter(str(path), "stablelm")
    keys = {"context_length": 64, "embedding_length": 512, "feed_forward_length": 512}
    for name, value in {**keys, "block_count": len(DECODED), "attention.head_count": 4}.items():
        writer.add_uint32(f"stablelm.{name}", value)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tensor("token_embd.weight", np.ones((8, 512), np.float32))
    for i, kind in enumerate(DECODED):
        raw = random_blocks(kind, np.random.default_rng(i))
        writer.add_tensor(f"blk.{i}.attn_q.weight", raw, raw_dtype=Kind[kind])
    finish(writer)
    return path


def test_every_type_is_decoded_as_llama_cpp_does(every_kind, tmp_path):
    ours = GgufWeights(read_gguf(every_kind))
    theirs = GgufWeights(read_gguf(widened(every_kind, tmp_path / "f32.gguf")))
    for i, kind in enumerate(DECODED):
        expected, whole = theirs.read(Q_PROJ.format(i)), ours.read(Q_PROJ.format(i))
        assert np.isfinite(expected).all()
        assert np.array_equal(whole, expected), kind
        assert np.array_equal(ours.read(Q_PROJ.format(i), 3, 7), whole[3:7])
        assert ours.read(Q_PROJ.format(i), 16).shape == (0, 512)
        if kind not in AFFINE:
            assert ours.packing(Q_PROJ.format(i)) is None


@pytest.mark.parametrize("kind", AFFINE)
def test_packed_weights_are_the_same_in_mlx(tmp_path, kind):
    raw = random_blocks(kind, np.random.default_rng(0)).reshape(-1, block_size(kind)[1])
    raw[:, 1] &= 0x9F  # scales below 2, some subnormal or zero
    raw[:40, 1] &= 0x83
    raw = raw.reshape(16, -1)
    weights, name = weights_of(tmp_path / "x.gguf", raw, kind), Q_PROJ.format(0)
    packed = weights.read_packed(name)
    bits = AFFINE[kind]
    assert (packed.packing.bits, packed.packing.group_size) == (bits, 32)
    assert packed.scales.dtype == packed.biases.dtype == np.float16
    assert np.any((np.abs(packed.scales) < 6e-5) & (packed.scales != 0))
    scales, biases = (mx.array(a.astype(np.float32)) for a in (packed.scales, packed.biases))
    mlx = np.array(mx.dequantize(mx.array(packed.codes), scales, biases, 32, bits))
    assert np.array_equal(mlx, dequantize(raw, Kind[kind]))
    assert np.array_equal(mlx, weights.read(name))


@pytest.mark.parametrize(
    ("kind", "scale"), [("Q8_0", 512.0), ("Q5_0", -4096.0), ("Q4_1", np.inf), ("Q8_0", np.nan)]
)
def test_scales_that_float16_cannot_hold_are_not_packed(tmp_path, kind, scale):
    raw = np.zeros((1, block_size(kind)[1]), np.uint8)
    for factor, is_packed in ((scale, False), (255.0, True)):
        raw[0, :2] = np.array([factor], np.float16).view(np.uint8)
        weights = weights_of(tmp_path / f"{is_packed}.gguf", raw, kind)
        assert (weights.packing(Q_PROJ.format(0)) is not None) is is_packed


def test_the_demo_is_read_back_unchanged(demo_out):
    opened = open_gguf(demo_out / "gguf-f32.gguf")
    truth = read_header(DEMO_PATH / "model.safetensors")
    assert opened.weights.shapes == {name: tensor.shape for name, tensor in truth.items()}
    for name, tensor in truth.items():
        assert np.array_equal(opened.weights.read(name), tensor.read())
    assert opened.config == ModelConfig.from_dict(
        json.loads((DEMO_PATH / "config.json").read_text())
    )
    assert (opened.title, opened.warnings, opened.weights.quantised) == ("demo", (), False)
    half = open_gguf(demo_out / "gguf-f16.gguf").weights
    assert half.read("lm_head.weight", 5, 9).dtype == np.float16
    assert half.read("model.norm.bias").dtype == np.float32


def test_the_network_is_read_from_keys_and_tensors(tmp_path):
    opened = open_gguf(write_tiny(tmp_path / "x.gguf"))
    config = opened.config
    check_shapes(config, opened.weights.shapes, "x")
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    assert (config.rope_theta, config.layer_norm_eps) == (10000.0, 1e-5)
    assert not (config.use_qkv_bias or config.qk_layernorm or config.use_parallel_residual)
    assert not config.tie_word_embeddings
    assert "Q4_0, Q5_1, Q8_0" in opened.warnings[0]
    assert not opened.gives_rope_base
    biases = {"blk.0.attn_q.bias": (64,), "blk.0.attn_k.bias": (32,), "blk.0.attn_v.bias": (32,)}
    biased = open_gguf(write_tiny(tmp_path / "y.gguf", {ROPE_BASE_KEY: 1e6}, biases))
    assert (biased.config.use_qkv_bias, biased.config.rope_theta) == (True, 1e6)
    assert biased.gives_rope_base
    check_shapes(biased.config, biased.weights.shapes, "y")
    for dims in (2, 10, 20, 26, 32):
        path = write_tiny(tmp_path / "z.gguf", {"stablelm.rope.dimension_count": dims})
        assert open_gguf(path).config.rotary_dims == dims


def test_stacked_norms_are_split_by_head(tmp_path):
    shapes = {"blk.0.attn_q_norm.weight": (2, 32), "blk.0.attn_k_norm.weight": (1, 32)}
    shapes |= {"blk.0.ffn_norm.weight": None, "blk.0.ffn_norm.bias": None}
    path = write_tiny(tmp_path / "x.gguf", tensors=shapes)
    opened = open_gguf(path)
    assert opened.config.qk_layernorm
    assert opened.config.use_parallel_residual
    check_shapes(opened.config, opened.weights.shapes, "x")
    stored = next(t for t in gguf.GGUFReader(str(path)).tensors if "attn_q_norm" in t.name)
    stacked = dequantize(stored.data, stored.tensor_type)
    for head in range(2):
        name = f"model.layers.0.self_attn.q_layernorm.norms.{head}.weight"
        assert np.array_equal(opened.weights.read(name), stacked[head])
        assert np.array_equal(opened.weights.read(name, 4, 6), stacked[head][4:6])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general.architecture": "gemma3"}, "holds a 'gemma3' model"),
        ({"general.architecture": "llama"}, "no key llama.embedding_length"),
        ({"split.count": 3}, "one of 3 parts of a split model"),
        ({"stablelm.block_count": 2}, "claims 2 layers and has 1"),
        ({"stablelm.context_length": None}, "no key stablelm.context_length"),
        ({"stablelm.attention.head_count": 0}, "invalid rope.dimension_count"),
        ({"stablelm.rope.scaling.type": "longrope"}, "rope scaling 'longrope'"),
        ({"stablelm.rope.scaling.attn_factor": 0.5}, "'linear with attn_factor 0.5'"),
        (
            {"stablelm.attention.head_count_kv": [1, 1]},
            "not give all layers the same",
        ),
        ({"stablelm.rope.dimension_count": [8]}, "invalid rope.dimension_count"),
        ({"stablelm.attention.sliding_window": 64}, "sliding window of 64"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer of type 'bert'"),
        ({"tokenizer.ggml.model": "llama"}, "no scores"),
        ({"tokenizer.ggml.pre": "qwen35"}, "'qwen35'"),
        ({"tokenizer.ggml.tokens": None}, "no tokens with their types"),
        ({"tokenizer.ggml.token_type": [1] * 11}, "no tokens with their types"),
        (
            {"tokenizer.ggml.tokens": [*TOKENS, "x"], "tokenizer.ggml.token_type": [1] * 13},
            "12 rows",
        ),
        ({"tokenizer.ggml.tokens": ["a"] * 12}, "one token under two ids"),
        ({"tokenizer.ggml.merges": ["a c"]}, "not a tokenizer .*Token `c` out of"),
        ({"tokenizer.ggml.merges": ["ab"]}, "not a tokenizer"),
        ({"tokenizer.ggml.merges": None}, "has no merges"),
        ({"rope_freqs.weight": (8,)}, "another way than Llama 3.1"),
        ({"blk.0.ffn_gate_inp.weight": (64, 64)}, "not part of a StableLM"),
        ({"token_embd.weight": None}, "has no token_embd.weight"),
        ({"blk.0.attn_q_norm.weight": (4097, 1)}, "4097 heads"),
    ],
)
def test_unusable_keys_and_tensors_are_refused(tmp_path, changes, words):
    tensors = {name: value for name, value in changes.items() if name.endswith(".weight")}
    keys = {name: value for name, value in changes.items() if name not in tensors}
    with pytest.raises(EdgeError, match=rf"x\.gguf.*{words}"):
        open_gguf(write_tiny(tmp_path / "x.gguf", keys, tensors))


# Keys that llama.cpp loads.
ODD = [
    {"general.description": b"caf\xe9", "general.name": b"\xff", "general.tags": ["a"]},
    {"stablelm.feed_forward_length": [96], "stablelm.attention.head_count": [2]},
    {"stablelm.attention.head_count_kv": [1]},
    {"stablelm.rope.scaling.factor": 0.0},
    {"stablelm.rope.scaling.factor": 0.0, "stablelm.rope.scaling.type": "yarn"},
    {"tokenizer.ggml.token_type": [3, 1, 77, 0, 3, 3, 3, 4, 1, 3, 5, 4]},
    {"tokenizer.ggml.token_type": None},
    {"tokenizer.ggml.token_type": [*TYPES, 1]},
    {"tokenizer.ggml.padding_token_id": 12, "tokenizer.ggml.unknown_token_id": 10},
    {"tokenizer.ggml.eos_token_id": 0xFFFFFFFF},
    {"tokenizer.ggml.bos_token_id": 99, "tokenizer.ggml.eos_token_id": 10},
    {"tokenizer.ggml.tokens": [*TOKENS[:7], "", "", *TOKENS[9:]]},
]


@pytest.mark.parametrize("changes", ODD)
def test_files_that_llama_cpp_loads_are_the_same_network(tmp_path, changes):
    plain, odd = (write_tiny(tmp_path / f"{i}.gguf", keys) for i, keys in enumerate(({}, changes)))
    logits = []
    for path in (plain, odd):
        with contextlib.closing(LlamaSession(path, 32, 1)) as session:
            session.decode([1, 2, 3])
            logits.append(session.last_logits())
            tokenizer = read_tokenizer(session)
            ids = tokenizer.encode("abba<fim_prefix>")
    assert np.array_equal(*logits)
    opened, wanted = open_gguf(odd), open_gguf(plain).config
    ends = {"bos_token_id": tokenizer.bos_token_id if 99 not in changes.values() else None}
    ends |= {"eos_token_ids": () if "tokenizer.ggml.eos_token_id" in changes else (0,)}
    assert opened.config == replace(wanted, **ends)
    rebuilt = Tokenizer.from_str(opened.tokenizer_files["tokenizer.json"].decode())
    assert rebuilt.encode("abba<fim_prefix>").ids == ids
    doubts = [c for c in changes if c.endswith("token_id") and changes[c] != 0xFFFFFFFF]
    assert len(opened.warnings) == 1 + len(doubts)


def test_an_added_token_past_the_embedding_is_kept_with_a_warning(tmp_path):
    keys = {"tokenizer.ggml.tokens": [*TOKENS, "<x>"], "tokenizer.ggml.token_type": [*TYPES, 3]}
    opened = open_gguf(write_tiny(tmp_path / "x.gguf", keys))
    assert "1 added tokens beyond the 12 rows" in opened.warnings[-1]
    assert Tokenizer.from_str(opened.tokenizer_files["tokenizer.json"].decode()).token_to_id("<x>")


def test_a_tensor_type_without_decoder_is_refused(tmp_path):
    path = tmp_path / "x.gguf"
    with pytest.raises(EdgeError, match="stored as I32"):
        weights_of(path, np.zeros((2, 4), np.int32), "I32")
    name = b"blk.0.attn_q.weight" + struct.pack("<IQQ", 2, 4, 2)
    path.write_bytes(path.read_bytes().replace(name + b"\x1a", name + b"\x63"))
    with pytest.raises(EdgeError, match=r"attn_q\.weight is stored as type 99.*choose another"):
        GgufWeights(read_gguf(path))

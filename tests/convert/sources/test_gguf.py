"""GGUF files as a source, against llama.cpp and the gguf package."""

import ctypes
import json
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from edge.convert.sources.find import DEMO_PATH
from edge.convert.sources.gguf import DECODED, GgufWeights, has_rope_base, open_gguf
from edge.errors import EdgeError
from edge.formats.gguf import block_size, read_gguf
from edge.formats.safetensors import SafetensorsFile
from edge.llama_cpp.quantise import quantise
from edge.llama_cpp.session import LlamaSession, library
from edge.model.config import ModelConfig
from edge.model.load import load_model
from edge.model.tensors import check_shapes
from tests.support.foreign_gguf import TINY_SHAPES, finish, write_tiny

Q_PROJ = "model.layers.{}.self_attn.q_proj.weight"
AFFINE = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5}
# llama_ftype of what llama.cpp makes without an importance matrix.
FILE_TYPES = {"q4_0": 2, "q8_0": 7, "q4_k_m": 15}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory) -> Path:
    """One matrix of every type with random bytes in it, no number of which is infinite."""
    path = tmp_path_factory.mktemp("kinds") / "kinds.gguf"
    writer = gguf.GGUFWriter(str(path), "stablelm")
    keys = {"context_length": 64, "embedding_length": 512, "feed_forward_length": 512}
    for name, value in {**keys, "block_count": len(DECODED), "attention.head_count": 4}.items():
        writer.add_uint32(f"stablelm.{name}", value)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tensor("token_embd.weight", np.ones((8, 512), np.float32))
    for i, kind in enumerate(DECODED):
        raw = random_blocks(kind, np.random.default_rng(i)).reshape(16, -1)
        writer.add_tensor(f"blk.{i}.attn_q.weight", raw, raw_dtype=Kind[kind])
    finish(writer)
    return path


def random_blocks(kind, rng) -> np.ndarray:
    items, size = block_size(kind)
    blocks = rng.integers(0, 256, (16 * 512 // items, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        infinite = ~np.isfinite(dequantize(blocks, Kind[kind])).all(axis=1)
    blocks[infinite] &= 0xBF  # no exponent of all ones
    return blocks


def as_float32_by_llama_cpp(source: Path, target: Path) -> Path:
    lib = library()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = 0, True, 1
    paths = str(source).encode(), str(target).encode()
    assert lib.llama_model_quantize(*paths, ctypes.byref(params)) == 0
    return target


def test_every_type_is_decoded_as_llama_cpp_does(every_kind, tmp_path):
    ours = GgufWeights(read_gguf(every_kind))
    theirs = GgufWeights(read_gguf(as_float32_by_llama_cpp(every_kind, tmp_path / "f32.gguf")))
    for i, kind in enumerate(DECODED):
        expected = theirs.read(Q_PROJ.format(i))
        assert np.isfinite(expected).all()
        assert np.array_equal(ours.read(Q_PROJ.format(i)), expected), kind


def test_rows_are_those_of_the_whole(every_kind):
    weights = GgufWeights(read_gguf(every_kind))
    for i in range(len(DECODED)):
        whole = weights.read(Q_PROJ.format(i))
        assert whole.dtype == np.float32
        assert np.array_equal(weights.read(Q_PROJ.format(i), 3, 7), whole[3:7])
        assert weights.read(Q_PROJ.format(i), 16).shape == (0, 512)


@pytest.mark.parametrize("kind", AFFINE)
def test_packed_weights_are_the_very_same_in_mlx(every_kind, kind):
    weights = GgufWeights(read_gguf(every_kind))
    name = Q_PROJ.format(DECODED.index(kind))
    raw = random_blocks(kind, np.random.default_rng(0))
    if weights.packing(name) is None:  # random scales are too large for a bias in float16
        assert kind in ("Q8_0", "Q4_0", "Q5_0")
    raw[:, 1] &= 0x9F  # scales, subnormal and zero ones among them, below 2
    raw[:40, 1] &= 0x83
    check_packed(kind, raw.reshape(16, -1), every_kind.parent / f"{kind}.gguf")


def check_packed(kind, raw, path):
    writer = gguf.GGUFWriter(str(path), "stablelm")
    writer.add_tensor("blk.0.attn_q.weight", raw, raw_dtype=Kind[kind])
    finish(writer)
    weights, name = GgufWeights(read_gguf(path)), Q_PROJ.format(0)
    packing = weights.packing(name)
    assert (packing.bits, packing.group_size) == (AFFINE[kind], 32)
    packed = weights.read_packed(name)
    assert packed.codes.shape == (16, 512 * packing.bits // 32)
    assert packed.scales.dtype == packed.biases.dtype == np.float16
    assert np.any((np.abs(packed.scales) < 6e-5) & (packed.scales != 0))
    scales, biases = (mx.array(a.astype(np.float32)) for a in (packed.scales, packed.biases))
    mlx = mx.dequantize(mx.array(packed.codes), scales, biases, 32, packing.bits)
    assert np.array_equal(np.array(mlx), dequantize(raw, Kind[kind]))
    assert np.array_equal(np.array(mlx), weights.read(name))


@pytest.mark.parametrize(
    ("kind", "scale"),
    [("Q8_0", 512.0), ("Q4_0", 8192.0), ("Q5_0", -4096.0), ("Q4_1", np.inf), ("Q8_0", np.nan)],
)
def test_what_float16_cannot_hold_is_not_packed(tmp_path, kind, scale):
    raw = np.zeros((1, block_size(kind)[1]), np.uint8)
    for factor, packable in ((scale, False), (255.0, True)):
        raw[0, :2] = np.array([factor], np.float16).view(np.uint8)
        writer = gguf.GGUFWriter(str(tmp_path / f"{packable}.gguf"), "stablelm")
        writer.add_tensor("output.weight", raw, raw_dtype=Kind[kind])
        finish(writer)
        weights = GgufWeights(read_gguf(tmp_path / f"{packable}.gguf"))
        assert (weights.packing("lm_head.weight") is not None) is packable


def test_other_types_have_no_packing(every_kind):
    weights = GgufWeights(read_gguf(every_kind))
    for i, kind in enumerate(DECODED):
        if kind not in AFFINE:
            assert weights.packing(Q_PROJ.format(i)) is None
    with pytest.raises(EdgeError, match="no exact form"):
        weights.read_packed(Q_PROJ.format(DECODED.index("Q6_K")))


def test_the_demo_comes_back_as_it_was(demo_out):
    opened = open_gguf(demo_out / "gguf-f32.gguf")
    truth = SafetensorsFile(DEMO_PATH / "model.safetensors")
    assert opened.weights.shapes == {name: e.shape for name, e in truth.entries.items()}
    for name in truth.entries:
        assert np.array_equal(opened.weights.read(name), truth.read(name))
    raw = json.loads((DEMO_PATH / "config.json").read_text())
    assert opened.config == ModelConfig.from_dict(raw)
    assert opened.title == "demo"
    assert opened.warnings == ()
    assert not opened.weights.quantised


def test_float16_stays_float16(demo_out):
    weights = open_gguf(demo_out / "gguf-f16.gguf").weights
    assert weights.read("lm_head.weight", 5, 9).dtype == np.float16
    assert weights.read("model.norm.bias").dtype == np.float32


def test_norms_of_heads_are_taken_apart(tmp_path):
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


def test_the_network_is_read_from_keys_and_tensors(tmp_path):
    opened = open_gguf(write_tiny(tmp_path / "x.gguf"))
    config = opened.config
    check_shapes(config, opened.weights.shapes, "x")
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    assert (config.rope_theta, config.layer_norm_eps) == (10000.0, 1e-5)
    assert config.rotary_dims == 8
    assert not (config.use_qkv_bias or config.qk_layernorm or config.use_parallel_residual)
    assert not config.tie_word_embeddings
    assert "Q4_0, Q5_1, Q8_0" in opened.warnings[0]
    biases = {
        f"blk.0.attn_{letter}.bias": (width,)
        for letter, width in {"q": 64, "k": 32, "v": 32}.items()
    }
    biased = open_gguf(write_tiny(tmp_path / "y.gguf", tensors=biases))
    assert biased.config.use_qkv_bias
    check_shapes(biased.config, biased.weights.shapes, "y")


@pytest.mark.parametrize("dims", range(2, 33, 2))
def test_the_rotated_dims_are_kept_exactly(tmp_path, dims):
    path = write_tiny(tmp_path / "x.gguf", {"stablelm.rope.dimension_count": dims})
    assert open_gguf(path).config.rotary_dims == dims


def test_no_rotary_base_is_told(tmp_path, tiny):
    assert not has_rope_base(tiny)
    given = write_tiny(tmp_path / "x.gguf", {"stablelm.rope.freq_base": 1e6})
    assert has_rope_base(given)
    assert open_gguf(given).config.rope_theta == 1e6


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"general.architecture": "llama"}, "holds a 'llama' model"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"stablelm.block_count": 2}, "claims 2 layers and holds 1"),
        ({"stablelm.context_length": None}, "no key stablelm.context_length"),
        ({"stablelm.context_length": "64"}, "not a positive whole number"),
        ({"stablelm.attention.head_count": 0}, "rope.dimension_count"),
        ({"stablelm.attention.head_count_kv": [1, 1]}, "num_key_value_heads"),
        ({"stablelm.rope.dimension_count": 40}, "partial_rotary_factor"),
        ({"stablelm.rope.scaling.type": "yarn"}, "'yarn'"),
        ({"stablelm.rope.freq_base": float("nan")}, "rope_theta is nan"),
        ({"tokenizer.ggml.eos_token_id": 99}, "eos_token_id is 99"),
        ({"tokenizer.ggml.unknown_token_id": 10}, "10 as its unk_token"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer of type 'llama'"),
        ({"tokenizer.ggml.model": None}, "tokenizer of type None"),
        ({"tokenizer.ggml.pre": "qwen35"}, "'qwen35'"),
        ({"tokenizer.ggml.tokens": None}, "no tokens with their types"),
        ({"tokenizer.ggml.tokens": ["a"] * 12}, "one token under two ids"),
        ({"tokenizer.ggml.token_type": [1]}, "no tokens with their types"),
        ({"tokenizer.ggml.merges": ["a c"]}, "merges 'a c'"),
        ({"tokenizer.ggml.merges": None}, "has no merges"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(tmp_path, keys, words):
    path = write_tiny(tmp_path / "x.gguf", keys)
    with pytest.raises(EdgeError, match=words) as error:
        open_gguf(path)
    assert "x.gguf" in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [("rope_freqs.weight", "not part of a StableLM"), ("blk.0.attn_qkv.weight", "not part of a")],
)
def test_a_foreign_tensor_is_a_sentence(tmp_path, name, words):
    with pytest.raises(EdgeError, match=words):
        open_gguf(write_tiny(tmp_path / "x.gguf", tensors={name: (64, 64)}))


def test_a_type_that_nobody_decodes_is_a_sentence(tmp_path):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(str(path), "stablelm")
    writer.add_tensor("output.weight", np.zeros((2, 4), np.int32))
    finish(writer)
    with pytest.raises(EdgeError, match="stored as I32"):
        open_gguf(path)


# ---- the same weights in both engines ----


def float32_model(path: Path, folder: Path):
    """Our network with what the source reads, dequantised."""
    opened = open_gguf(path)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(opened.config.to_dict()))
    tensors = {n: opened.weights.read(n).astype(np.float32) for n in opened.weights.shapes}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return load_model(folder, mx.float32)


def llama_logits(path: Path, ids: list[int]) -> np.ndarray:
    session = LlamaSession(path, 256, 2, "f32", flash_attention=False, gpu_layers=0)
    try:
        return session.all_logits(ids)
    finally:
        session.close()


@pytest.mark.parametrize("name", FILE_TYPES)
def test_both_engines_agree_on_the_same_quantised_weights(name, demo_out, held_out_text, tmp_path):
    """llama.cpp multiplies quantised weights with activations that it rounds to 8 bits.

    Hence two comparisons: with its own float32 copy of the very same weights (measured 4e-5),
    and with the file itself (measured on average 0.04 to 0.07 where the logits' standard
    deviation is 3.5, the same first choice at 97 to 98 % of the positions).
    """
    path = tmp_path / f"{name}.gguf"
    quantise(demo_out / "gguf-f16.gguf", path, FILE_TYPES[name], lambda _: None)
    ids = Tokenizer.from_file(str(DEMO_PATH / "tokenizer.json")).encode(held_out_text).ids[:200]
    ours = np.array(float32_model(path, tmp_path / "model")(mx.array([ids])))[0]
    widened = as_float32_by_llama_cpp(path, tmp_path / "f32.gguf")
    assert np.abs(llama_logits(widened, ids) - ours).max() <= 5e-4
    rounded = llama_logits(path, ids)
    assert np.abs(rounded - ours).mean() <= 0.1
    assert (rounded.argmax(-1) == ours.argmax(-1)).mean() >= 0.94


def test_the_tiny_file_is_whole(tiny):
    """What the mutations start from."""
    assert {t.name for t in read_gguf(tiny).tensors} == set(TINY_SHAPES)
    opened = open_gguf(tiny)
    check_shapes(opened.config, opened.weights.shapes, "x")

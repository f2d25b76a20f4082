"""Tokenizers, tensors and numbers made to harm: each kind is a clear sentence."""

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge.convert.checkpoint import open_checkpoint
from tests.support.foreign_gguf import write_tiny
from tests.support.hostile import MADE, UP, WEIGHTS, edit, edit_header, edit_tensors, refused, run
from tests.support.mutations import SMALL
from tests.support.tiny import write_checkpoint


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", SMALL)


# --- the tokenizer


TOKENIZERS = {
    "huge id": (lambda t: t["model"]["vocab"].update({"!!": 10**9}), "token id 1000000000"),
    "beyond": (lambda t: t["model"]["vocab"].update({"!!": 64}), "embedding has 64 rows"),
    "added": (lambda t: t["added_tokens"][0].update(id=64, content="x"), "embedding has 64 rows"),
    "negative": (lambda t: t["model"]["vocab"].update({"!!": -1}), "has the id -1"),
    "text": (lambda t: t["model"]["vocab"].update({"!!": "63"}), "has the id '63'"),
    "float": (lambda t: t["model"]["vocab"].update({"!!": 63.0}), "has the id 63.0"),
    "true": (lambda t: t["model"]["vocab"].update({"!!": True}), "has the id True"),
    "null": (lambda t: t["model"]["vocab"].update({"!!": None}), "has the id None"),
    "list": (lambda t: t["model"]["vocab"].update({"!!": [1]}), r"has the id \[1\]"),
    "one id twice": (lambda t: t["model"]["vocab"].update({"!!": 1}), "have both the id 1"),
    "two ids": (lambda t: t["added_tokens"][0].update(id=5), "have both the id 5"),
    "twice": (lambda t: t["added_tokens"].append(t["added_tokens"][0] | {"id": 62}), "the id"),
    "no content": (lambda t: t["added_tokens"][0].pop("content"), "is not a tokenizer"),
    "content": (lambda t: t["added_tokens"][0].update(content=5), "has the id 0"),
    "special": (lambda t: t["added_tokens"][0].update(special="no"), "expected a boolean"),
    "added text": (lambda t: t.update(added_tokens="x"), "is not a tokenizer"),
    "merges text": (lambda t: t["model"].update(merges="x"), "is not a tokenizer"),
    "merges number": (lambda t: t["model"].update(merges=5), "is not a tokenizer"),
    "a merge number": (lambda t: t["model"].update(merges=[5]), "is not a tokenizer"),
    "a merge of one": (lambda t: t["model"].update(merges=["!"]), "is not a tokenizer"),
    "a merge of three": (lambda t: t["model"].update(merges=[["!"] * 3]), "is not a tokenizer"),
    "a merge of none": (lambda t: t["model"].update(merges=["x y"]), "is not a tokenizer"),
    "a merge into none": (lambda t: t["model"].update(merges=['! "']), "is not a tokenizer"),
    "no vocabulary": (lambda t: t["model"].pop("vocab"), "is not a tokenizer"),
    "vocabulary": (lambda t: t["model"].update(vocab=5), "is not a tokenizer"),
    "no model": (lambda t: t.pop("model"), "is not a tokenizer"),
    "model": (lambda t: t.update(model=[]), "is not a tokenizer"),
    "splitting": (lambda t: t.update(pre_tokenizer={"type": "\x1b[2J\n"}), "is not a tokenizer"),
    "kind": (lambda t: t["model"].update(type="\x1b[2J\n"), "is not a tokenizer"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_that_harms(tiny, kind):
    change, words = TOKENIZERS[kind]
    edit(tiny, "tokenizer.json", change)
    for names in (MADE, ["mlx-fp16"]):  # an MLX artefact copies the file: no reason to pass it
        assert "tokenizer.json" in refused(tiny, words, names)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json", "vocab.json"])
def test_broken_companions_are_not_copied(tiny, name):
    (tiny / name).write_bytes(b'{"a": ')
    assert name in refused(tiny, "cannot be read as JSON")


def test_a_template_that_is_no_text(tiny):
    (tiny / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    refused(tiny, r"chat_template\.jinja cannot be read")


# --- safetensors


def _entry(**changes):
    return lambda header: header[UP].update(changes)


HEADERS = {
    "beyond the file": (_entry(data_offsets=[0, 2**40]), "bytes for shape"),
    "negative": (_entry(data_offsets=[-8, 0]), "not safetensors"),
    "backwards": (_entry(data_offsets=[24576, 0]), "bytes for shape"),
    "overlapping": (lambda h: h[UP].update(data_offsets=[0, 24576]), "overlapping"),
    "overflowing": (_entry(shape=[2**62, 4]), "bytes for shape"),
    "overflowing to right": (_entry(shape=[2**63, 2**1, 6144]), "not safetensors"),
    "many digits": (_entry(shape=[10**4000, 96]), "not safetensors"),
    "many axes": (_entry(shape=[1] * 10**5 + [96, 64]), "not safetensors"),
    "negative shape": (_entry(shape=[-96, -64]), "not safetensors"),
    "truth": (_entry(shape=[True, 6144]), "not safetensors"),
    "text": (_entry(shape="96"), "not safetensors"),
    "float": (_entry(shape=[96.0, 64]), "not safetensors"),
    "empty": (_entry(shape=[0, 64], data_offsets=[0, 0]), "overlapping or after a gap|bytes"),
    "scalar": (_entry(shape=[]), "bytes for shape"),
    "turned": (_entry(shape=[64, 96]), r"has shape \[64, 96\], config.json asks for \[96, 64\]"),
    "three axes": (_entry(shape=[96, 64, 1]), r"has shape \[96, 64, 1\]"),
    "metadata": (lambda h: h.update(__metadata__={"a": 5}), "not safetensors"),
    "metadata list": (lambda h: h.update(__metadata__=[]), "not safetensors"),
    "dtype": (_entry(dtype=["F32"]), "not safetensors"),
    **{
        name: (_entry(dtype=name), f"tensor {UP} is stored as {name}, edge reads")
        for name in ("F8_E4M3", "F8_E5M2", "U16", "I8", "BOOL", "C64", "F4", "U64", "x" * 99)
    },
    **{
        name: (_entry(dtype=name), f"{UP} is stored as {name}, not as a float")
        for name in ("I32", "U32")
    },
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_lies(tiny, kind):
    change, words = HEADERS[kind]
    edit_header(tiny, change)
    refused(tiny, words)


def test_an_absurd_header(tiny):
    for content, words in (
        ((2**63).to_bytes(8, "little"), "cut off inside its header"),
        ((10**6).to_bytes(8, "little") + b"{" * 10**6, "not safetensors"),
        ((10**6).to_bytes(8, "little") + b'{"a":' * 200_000, "not safetensors"),
        (b"\x02\0\0\0\0\0\0\0{}" + b"\0" * 64, "64 bytes too many"),
        (b"\x02\0\0\0\0\0\0\0{}", r"tensor model\.embed_tokens\.weight .* is missing"),
    ):
        (tiny / WEIGHTS).write_bytes(content)
        refused(tiny, words)


def test_one_tensor_under_two_entries(tiny):
    content = (tiny / WEIGHTS).read_bytes()
    (tiny / WEIGHTS).write_bytes(content.replace(b'"model.norm.weight"', b'"model.norm.bias"  '))
    refused(tiny, "not safetensors")


def test_a_scalar_and_nothing_at_all_where_a_matrix_belongs(tiny):
    for array in (np.float32(1), np.zeros((0, 64), np.float32), np.zeros(64, np.float32)):
        edit_tensors(tiny, lambda tensors, array=array: tensors.update({UP: np.asarray(array)}))
        refused(tiny, f"tensor {UP} has shape")


def test_an_empty_tensor_between_others_is_no_overlap(tiny):
    """The format lets it begin where the next begins."""
    tensors = load_file(tiny / WEIGHTS)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(0, np.float32)
    save_file(tensors, tiny / WEIGHTS)
    assert len(run(tiny, tiny.parent / "out")) == 3


# --- numbers


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", [UP, "model.norm.bias", "model.embed_tokens.weight"])
def test_numbers_that_are_none_are_named_with_their_tensor(tiny, bad, dtype, name):
    def change(tensors):
        tensors[name] = tensors[name].astype(dtype)
        tensors[name].flat[-1] = bad

    edit_tensors(tiny, change)
    for names in (MADE, ["mlx-fp16"], ["mlx-int4"], ["gguf-f16"], ["gguf-q8_0"]):
        refused(tiny, f"tensor {name} holds values that are not finite", names)


@pytest.mark.parametrize("part", ["scales", "biases"])
def test_broken_scales_of_mlx_are_named(tmp_path, part):
    path = write_checkpoint(tmp_path / "m", {**SMALL, "quantization": {"bits": 4}})
    stem = UP.removesuffix("weight")
    for names in (["mlx-int4"], ["mlx-fp16"], ["gguf-f16"]):
        edit_tensors(write_checkpoint(path, {**SMALL, "quantization": {}}), _quantise(stem, part))
        refused(path, rf"{stem}(weight|{part}).* not finite", names)


def _quantise(stem, broken):
    def change(tensors):
        codes, scales, biases = mx.quantize(mx.array(tensors[f"{stem}weight"]), 32, 4)
        parts = {"weight": codes, "scales": scales, "biases": biases}
        tensors |= {
            stem + n: np.array(a if n == "weight" else a.astype(mx.float16))
            for n, a in parts.items()
        }
        tensors[stem + broken][3, 1] = np.nan

    return change


def test_whole_numbers_in_an_mlx_checkpoint_are_no_weights(tmp_path):
    path = write_checkpoint(tmp_path / "m", {**SMALL, "quantization": {}})
    edit_header(path, _entry(dtype="I32"))
    refused(path, "I32")


@pytest.mark.parametrize("name", ["model.norm.scales", "model.norm.biases", "x.scales", "x_order"])
def test_scales_of_nothing_are_refused(tmp_path, name):
    path = write_checkpoint(tmp_path / "m", {**SMALL, "quantization": {}})
    edit_tensors(path, lambda tensors: tensors.update({name: np.zeros((64, 2), np.float16)}))
    refused(path, name.split(".")[0])


@pytest.mark.parametrize(
    "order", [[0] * 64, [-1, *range(1, 64)], [*range(63), 64], list(range(32))]
)
def test_an_order_that_is_none(tmp_path, order):
    path = write_checkpoint(tmp_path / "m", {**SMALL, "quantization": {}})

    def change(tensors):
        _quantise(UP.removesuffix("weight"), "scales")(tensors)
        tensors[UP.removesuffix("weight") + "scales"][3, 1] = 0
        tensors["model.layers.0.mlp.gate_up_order"] = np.array(order, np.int32)

    edit_tensors(path, change)
    for names in (["mlx-int4"], ["mlx-fp16"]):
        refused(path, "gate_up_order", names)


# --- GGUF


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"stablelm.block_count": 2**31}, "claims 2147483648 layers and holds 1"),
        ({"stablelm.embedding_length": 2**31}, "hidden_size|impossible"),
        ({"stablelm.attention.head_count": 0}, "num_attention_heads|impossible"),
        ({"stablelm.rope.freq_base": float("nan")}, "rope_theta"),
        ({"stablelm.rope.freq_base": float("inf")}, "rope_theta"),
        ({"stablelm.attention.layer_norm_epsilon": float("nan")}, "layer_norm_eps"),
        ({"general.architecture": "\x1b[2J\n"}, r"holds a '\\x1b"),
        ({"tokenizer.ggml.tokens": ["a"] * 12}, "under two ids"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "merges"),
        ({"tokenizer.ggml.eos_token_id": 2**31}, "eos"),
    ],
)
def test_a_gguf_file_that_harms(tmp_path, keys, words):
    refused(write_tiny(tmp_path / "x.gguf", keys), words)


def test_warnings_too_reach_no_terminal(tmp_path):
    texts = ["\x1b[2J\n", "b", "c", "bc", *"defghijk"]
    keys = {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.merges": ["b c"]}
    keys |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 0}
    warnings = open_checkpoint(str(write_tiny(tmp_path / "x.gguf", keys))).warnings
    assert any(r"wants \x1b[2J\n before every text" in warning for warning in warnings)
    assert all(warning.isprintable() for warning in warnings)

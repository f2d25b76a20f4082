"""Artefacts on disk: dtypes, tied heads, quantisation in every form that mlx-lm writes."""

import json
import os
import shutil

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.convert import convert as mlx_lm_convert
from mlx_lm.utils import load_model as mlx_lm_load_model

from edge.errors import EdgeError
from edge.model.config import ModelConfig
from edge.model.load import load, load_model
from edge.model.quantised import MODES
from edge.model.stablelm import Model
from tests.support.tiny import (
    CONFIGS,
    LLAMA,
    LLAMA_CONFIGS,
    PLAIN,
    random_tensors,
    token_ids,
    write_checkpoint,
)

TOLERANCE = 1e-4
# Eight layers: mlx-lm's mixed recipes give the first, the last and every third more bits.
DEEP = {**PLAIN, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 8}
DEEP_LLAMA = {**LLAMA, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 8}
AFFINE = {"group_size": 64, "bits": 4, "mode": "affine"}
# Everything in PLAIN but down_proj (96 inputs) divides by 64.
V_PROJ = "model.layers.0.self_attn.v_proj"


def quantised_artefact(path, raw, quantization):
    """A tiny artefact with the matrices quantised as `quantization` says, made by MLX alone."""
    config = ModelConfig.from_dict(raw)
    model = Model(config)
    weights = {name: mx.array(array) for name, array in random_tensors(config).items()}
    model.load_weights(list(model.sanitize(weights).items()))
    top = {key: quantization[key] for key in AFFINE if key in quantization}

    def how(name, module):
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % top["group_size"]:
            return False
        return quantization.get(name, True)

    nn.quantize(model, **top, class_predicate=how)
    path.mkdir(parents=True)
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    write_config(path, {**config.to_dict(), "quantization": quantization})
    return path


def write_config(path, raw):
    (path / "config.json").write_text(json.dumps(raw))


def change(path, **tensors):
    """Write the artefact's tensors again, some of them replaced, or left out where None."""
    file = str(path / "model.safetensors")
    found = {**mx.load(file), **{k.replace("__", "."): v for k, v in tensors.items()}}
    kept = {name: array + 0 for name, array in found.items() if array is not None}
    mx.eval(kept)
    mx.save_safetensors(file, kept)


def difference(path):
    """The largest difference of our logits from mlx-lm's, both in float32."""
    ours = load_model(path, mx.float32)
    theirs, _ = mlx_lm_load_model(path)
    theirs.set_dtype(mx.float32)
    ids = mx.array(token_ids(ours.config))
    return np.abs(np.array(ours(ids)) - np.array(theirs(ids))).max()


@pytest.mark.parametrize("raw", [DEEP, DEEP_LLAMA], ids=["stablelm", "llama"])
@pytest.mark.parametrize("recipe", ["mixed_2_6", "mixed_3_6"])
def test_mixed_recipes_of_mlx_lm(raw, recipe, tmp_path):
    source = write_checkpoint(tmp_path / "source", raw)
    out = tmp_path / "out"
    mlx_lm_convert(str(source), str(out), quantize=True, quant_predicate=recipe, dtype="float32")
    quantization = json.loads((out / "config.json").read_text())["quantization"]
    bits = {how["bits"] for how in quantization.values() if isinstance(how, dict)}
    assert bits == {int(recipe[6]), 6}
    assert difference(out) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("raw", [PLAIN, LLAMA_CONFIGS["llama-tied"]], ids=["stablelm", "llama"])
def test_every_mode_of_mlx(mode, raw, tmp_path):
    bits, group_sizes = MODES[mode]
    quantization = {"group_size": group_sizes[0], "bits": bits[0], "mode": mode}
    path = quantised_artefact(tmp_path / "m", raw, quantization)
    assert any(name.endswith(".scales") for name in mx.load(str(path / "model.safetensors")))
    assert difference(path) < TOLERANCE


def test_matrices_that_are_left_alone(tmp_path):
    """As a GPTQ checkpoint converts: the tables in float, one matrix in more bits."""
    quantization = {
        **AFFINE,
        "model.embed_tokens": False,
        "lm_head": False,
        V_PROJ: {"group_size": 32, "bits": 8},
    }
    path = quantised_artefact(tmp_path / "m", LLAMA, quantization)
    model = load_model(path)
    assert isinstance(model.lm_head, nn.Linear)
    assert isinstance(model.model.embed_tokens, nn.Embedding)
    v_proj, q_proj = model.layers[0].self_attn.v_proj, model.layers[0].self_attn.q_proj
    assert (v_proj.group_size, v_proj.bits) == (32, 8)
    assert (q_proj.group_size, q_proj.bits) == (64, 4)
    assert difference(path) < TOLERANCE


def test_an_object_of_its_own_does_not_inherit(tmp_path):
    """As mlx-lm: what it leaves out is the mode's default, not the value on top."""
    top = {"group_size": 32, "bits": 8, "mode": "affine"}
    quantization = {**top, V_PROJ: {"bits": 6}}
    path = quantised_artefact(tmp_path / "m", PLAIN, quantization)
    assert load_model(path).layers[0].self_attn.v_proj.group_size == 64
    assert difference(path) < TOLERANCE


@pytest.mark.parametrize("raw", [CONFIGS["tied"], *LLAMA_CONFIGS.values()])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_float_type(raw, dtype, tmp_path):
    path = write_checkpoint(tmp_path / "m", raw)
    tensors = mx.load(str(path / "model.safetensors"))
    rounded = {k: v.astype(getattr(mx, dtype)) for k, v in tensors.items()}
    exact = Model(ModelConfig.from_dict(raw))
    float32 = {k: v.astype(mx.float32) for k, v in rounded.items()}
    exact.load_weights(list(exact.sanitize(float32).items()))
    change(path, **rounded)
    model = load_model(path, mx.float32)
    ids = mx.array(token_ids(model.config))
    assert mx.allclose(model(ids), exact(ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        (None, "no 'quantization'"),
        ("affine", "is 'affine', not an object"),
        ([], r"is \[\], not an object"),
        ({}, "lacks group_size or bits"),
        ({"group_size": 64}, "lacks group_size or bits"),
        ({**AFFINE, "bits": 7}, "bits 7; MLX has 1, 2, 3, 4, 5, 6, 8"),
        ({**AFFINE, "bits": "4"}, "bits '4'"),
        ({**AFFINE, "bits": True}, "bits True"),
        ({**AFFINE, "bits": 8}, r"has shape \[\d+, 8\], config.json asks for \[\d+, 16\]"),
        ({**AFFINE, "group_size": 50}, "group_size 50; MLX has 32, 64, 128"),
        ({**AFFINE, "group_size": 32}, r"scales has shape"),
        ({**AFFINE, "group_size": 128}, "do not divide its 64 inputs"),
        ({**AFFINE, "mode": "gguf"}, "mode 'gguf'"),
        ({**AFFINE, "mode": ["affine"]}, "mode"),
        ({**AFFINE, "mode": "mxfp4"}, "group_size 64; MLX has 32"),
        ({**AFFINE, V_PROJ: "6 bits"}, f"quantization of {V_PROJ} is '6 bits'"),
        ({**AFFINE, V_PROJ: None}, f"quantization of {V_PROJ} is None"),
        ({**AFFINE, V_PROJ: {"bits": 7}}, f"quantization of {V_PROJ} has bits 7"),
        ({**AFFINE, V_PROJ: {"bits": 6}}, f"tensor {V_PROJ}.weight has shape"),
        ({**AFFINE, V_PROJ: False}, f"tensor {V_PROJ}.scales is there"),
        ({**AFFINE, "model.layers.0.mlp.down_proj": True}, r"down_proj\.scales is missing"),
        ({**AFFINE, "model.layers.0.mlp.down_proj": {}}, r"down_proj\.scales is missing"),
    ],
)
def test_a_recipe_that_does_not_fit_is_one_sentence(quantization, words, tmp_path):
    path = quantised_artefact(tmp_path / "m", PLAIN, AFFINE)
    raw = json.loads((path / "config.json").read_text())
    write_config(path, {**raw, "quantization": quantization})
    with pytest.raises(EdgeError, match=words) as error:
        load_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "array", "words"),
    [
        ("scales", None, r"v_proj\.scales is missing"),
        ("biases", None, r"v_proj\.biases is missing"),
        ("weight", None, r"v_proj\.weight is missing"),
        ("weight", mx.zeros((64, 8)), "float32, which cannot stand for .*uint32"),
        ("weight", mx.zeros((64, 7), dtype=mx.uint32), r"has shape \[64, 7\]"),
        ("scales", mx.zeros((64, 1), dtype=mx.uint8), "uint8, which cannot stand for"),
        ("scales", mx.zeros((64, 2)), r"has shape \[64, 2\]"),
        ("spice", mx.zeros((1,)), r"unknown tensor .*spice"),
    ],
)
def test_tensors_that_do_not_fit_are_one_sentence(part, array, words, tmp_path):
    path = quantised_artefact(tmp_path / "m", PLAIN, AFFINE)
    change(path, **{f"{V_PROJ}.{part}": array})
    with pytest.raises(EdgeError, match=words) as error:
        load_model(path)
    assert "\n" not in str(error.value)


def test_a_gptq_checkpoint_has_to_be_converted(tmp_path):
    path = write_checkpoint(tmp_path / "m", LLAMA)
    change(path, **{f"{V_PROJ}.qweight": mx.zeros((8, 64), dtype=mx.int32)})
    with pytest.raises(EdgeError, match="convert it"):
        load_model(path)


# --- what is no model, or half of one


def refused(path):
    """The sentence that says why a directory does not load."""
    with pytest.raises(EdgeError) as error:
        load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def copied(demo_out, tmp_path):
    """The demo's artefact, to spoil."""
    return shutil.copytree(demo_out / "mlx-fp16", tmp_path / "copied")


def test_a_whole_copy_loads(copied):
    model, tokenizer = load(copied)
    assert model(mx.array([tokenizer.encode("x = 1")])).shape[-1] == len(tokenizer)


@pytest.mark.parametrize("kept", [0, 5, 8, 2000, 20_000, 3_000_000])
def test_a_cut_off_file_of_weights(kept, copied):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert "model.safetensors cannot be read" in refused(copied)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "has no tokenizer.json and no tokenizer.model"),
        ("model.safetensors", "holds no *.safetensors"),
    ],
)
def test_a_file_that_was_not_copied(name, words, copied):
    (copied / name).unlink()
    assert words in refused(copied)


def test_a_shard_that_was_not_copied(copied):
    index = copied / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.st"}}))
    assert "model-2.st is missing, which model.safetensors.index.json names" in refused(copied)


def test_an_empty_directory(tmp_path):
    assert "config.json is missing" in refused(tmp_path)


def test_another_family(copied):
    write_config(copied, {"model_type": "mistral", "architectures": ["MistralForCausalLM"]})
    assert "describes a 'mistral' model" in refused(copied)


def test_gptq_weights_are_named_as_such(tmp_path):
    path = write_checkpoint(tmp_path / "m", LLAMA)
    change(path, **{f"{V_PROJ}.qweight": mx.zeros((8, 64), dtype=mx.int32)})
    assert "holds GPTQ weights; convert it" in refused(path)


def test_files_are_no_directories(tmp_path, demo_out):
    (tmp_path / "plain").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    assert "is a GGUF file, and a model" in refused(demo_out / "gguf-f16.gguf")
    assert "is no directory, and a model" in refused(tmp_path / "plain")
    assert "is no directory, and a model" in refused(tmp_path / "pipe")
    assert "is not there" in refused(tmp_path / "nowhere")


ODDITIES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([1, 2, 3, 4, 5, 6, 8, 16, 32, 64, 128]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(sorted(MODES)),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(sorted(AFFINE)), st.integers(), max_size=3),
)
KEYS = [*AFFINE, V_PROJ, "model.embed_tokens", "model.layers.0.mlp.down_proj", "model.norm", "x"]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    return quantised_artefact(tmp_path_factory.mktemp("fuzz") / "m", PLAIN, AFFINE)


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), ODDITIES, min_size=1, max_size=3))
def test_any_recipe_makes_a_model_or_one_sentence(artefact, changes):
    write_config(artefact, {**PLAIN, "quantization": {**AFFINE, **changes}})
    try:
        model = load_model(artefact)
    except EdgeError as error:
        assert "\n" not in str(error)
        return
    assert mx.all(mx.isfinite(model(mx.array([[1, 2]])))).item()

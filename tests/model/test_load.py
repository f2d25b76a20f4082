"""Loading artefacts: all forms of quantisation that mlx-lm writes, and invalid files."""

import json
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.convert import convert as mlx_lm_convert
from mlx_lm.utils import load_model as mlx_lm_load_model

from edge.errors import EdgeError
from edge.formats import files
from edge.model.load import load, load_model, open_model
from tests.support.tiny import (
    LLAMA,
    LLAMA_CONFIGS,
    MODES,
    PLAIN,
    token_ids,
    write_checkpoint,
    write_quantised,
)

TOLERANCE = 1e-4
# mlx-lm's mixed recipes give more bits to the first, the last and every third of eight layers.
DEEP = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 8}
AFFINE = {"group_size": 64, "bits": 4, "mode": "affine"}
V_PROJ = "model.layers.0.self_attn.v_proj"
DOWN_PROJ = "model.layers.0.mlp.down_proj"


def difference(path):
    """Largest difference of logits from mlx-lm's, both in float32."""
    ours = load_model(path, mx.float32)
    theirs, _ = mlx_lm_load_model(path)
    theirs.set_dtype(mx.float32)
    ids = mx.array(token_ids(ours.config))
    return np.abs(np.array(ours(ids)) - np.array(theirs(ids))).max()


@pytest.mark.parametrize("raw", [PLAIN, LLAMA], ids=["stablelm", "llama"])
@pytest.mark.parametrize("recipe", ["mixed_2_6", "mixed_3_6"])
def test_mixed_recipes_of_mlx_lm(raw, recipe, tmp_path):
    source, out = write_checkpoint(tmp_path / "source", raw | DEEP), tmp_path / "out"
    mlx_lm_convert(str(source), str(out), quantize=True, quant_predicate=recipe, dtype="float32")
    quantization = json.loads((out / "config.json").read_text())["quantization"]
    bits = {how["bits"] for how in quantization.values() if isinstance(how, dict)}
    assert bits == {int(recipe[6]), 6}
    assert difference(out) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("raw", [PLAIN, LLAMA_CONFIGS["llama-tied"]], ids=["stablelm", "llama"])
def test_every_mode_of_mlx(mode, raw, tmp_path):
    path = write_quantised(tmp_path / "m", raw, {"mode": mode, **MODES[mode]})
    assert isinstance(load_model(path).layers[-1].mlp.down_proj, nn.QuantizedLinear)
    assert difference(path) < TOLERANCE


def set_quantization(path, quantization):
    (path / "config.json").write_text(json.dumps({**PLAIN, "quantization": quantization}))


def test_a_matrix_with_own_settings_has_the_modes_default_for_missing_ones(tmp_path):
    top = {"group_size": 32, "bits": 8, "mode": "affine"}
    path = write_quantised(tmp_path / "m", PLAIN, {**top, V_PROJ: {"bits": 6, "group_size": 64}})
    set_quantization(path, {**top, V_PROJ: {"bits": 6}})
    assert load_model(path).layers[0].self_attn.v_proj.group_size == 64
    assert difference(path) < TOLERANCE


BITS = r"weight is .*uint32, not .*float32"


@pytest.mark.parametrize(
    ("quantization", "tensors", "words"),
    [
        ("affine", {}, r"\(quantization is 'affine', not an object\)"),
        ({"group_size": 128}, {}, "128"),
        ({"mode": ["affine"]}, {}, r"\(quantization mode \['affine'\] is unknown\)"),
        ({V_PROJ: "6 bits"}, {}, rf"of {V_PROJ} is '6 bits', not true, false or an object"),
        ({V_PROJ: {"bits": 6}}, {}, rf"Expected shape .* {V_PROJ}\.weight"),
        ({}, {"scales": None}, BITS),
        ({}, {"biases": None}, r"Missing .*v_proj\.biases"),
        ({}, {"weight": mx.zeros((64, 8))}, "weight is .*float32, not .*uint32"),
        ({}, {"scales": mx.zeros((64, 1), dtype=mx.uint8)}, r"uint8, not .*float32"),
        ({}, {"spice": mx.zeros((1,))}, "not in model: .*spice"),
    ],
    ids=str,
)
def test_settings_and_tensors_that_contradict_are_refused(quantization, tensors, words, tmp_path):
    tensors = {f"{V_PROJ}.{part}": array for part, array in tensors.items()}
    path = write_quantised(tmp_path / "m", PLAIN, AFFINE, tensors)
    is_object = isinstance(quantization, dict)
    set_quantization(path, AFFINE | quantization if is_object else quantization)
    with pytest.raises(EdgeError, match=words) as error:
        load_model(path)
    assert "\n" not in str(error.value)


@pytest.fixture
def copied(demo_out, tmp_path):
    """A copy of the demo's artefact."""
    return shutil.copytree(demo_out / "mlx-fp16", tmp_path / "copied")


@pytest.mark.parametrize("opener", [load, open_model])
def test_config_json_is_read_once(opener, copied, monkeypatch):
    read, opened = [], files.read_small_file
    monkeypatch.setattr(files, "read_small_file", lambda p: read.append(p.name) or opened(p))
    model, tokenizer, *_ = opener(copied)
    assert model(mx.array([tokenizer.encode("x = 1")])).shape[-1] == len(tokenizer)
    assert read.count("config.json") == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", r"config\.json is missing"),
        ("tokenizer.json", r"has no tokenizer\.json and no tokenizer\.model"),
        ("model.safetensors", r"has no (\*|model)\.safetensors"),
    ],
)
def test_a_missing_file_is_named(name, words, copied):
    (copied / name).unlink()
    absent = (copied / name, "does not exist")
    for path, why in ((copied, words), absent, ("/dev/null", "is not a directory")):
        with pytest.raises(EdgeError, match=why):
            load(path)


@pytest.mark.parametrize(
    ("script", "heavy"),
    [
        ("from edge.tokenizer.tokenizer import Tokenizer; Tokenizer.load(path).encode('a b')",
         "transformers mlx_lm mlx numpy jinja2 huggingface_hub"),
        ("from edge.model.load import load_model; from edge.model.kv_cache import make_cache\n"
         "import mlx.core as mx; m = load_model(path); mx.eval(m(mx.array([[1]]), make_cache(m)))",
         "mlx_lm transformers numpy msgspec"),
    ],
    ids=["tokenizer", "model"],
)  # fmt: skip
def test_heavy_packages_are_not_imported(script, heavy, demo_out):
    path = f"import sys; from pathlib import Path; path = Path({str(demo_out / 'mlx-int4')!r})\n"
    printed = f"\nprint(set({heavy.split()}) & set(sys.modules))"
    command = [sys.executable, "-c", path + script + printed]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"set()\n"

"""Every way to run the network gives the same logits."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import compute_bits_per_weight, get_total_parameters

from edge.model import fusing
from edge.model.config import ModelConfig
from edge.model.load import load_model
from edge.model.quantised import MODES
from edge.model.stablelm import Model
from edge.model.variant import FUSED_DECODE_WIDTHS, Variant
from tests.support.tiny import (
    CONFIGS,
    LLAMA_CONFIGS,
    random_tensors,
    token_ids,
    write_checkpoint,
)

ALL = CONFIGS | LLAMA_CONFIGS
ROUNDING = 1e-6  # float32, relative to the largest logit
APART = Variant(fuse=False, pad=False)
VARIANTS = [Variant(), Variant(fuse=False, pad=True), Variant(fuse=True, pad=True)]


def stepwise(model, chunks=(9, 1, 6, 1, 1)):
    """Logits over prefill in chunks and single tokens, the cache in between."""
    ids = mx.array(token_ids(model.config, sum(chunks)))
    cache = make_prompt_cache(model)
    ends = np.cumsum(chunks)
    parts = [model(ids[:, e - n : e], cache)[0] for n, e in zip(chunks, ends, strict=True)]
    return np.array(mx.concatenate(parts))


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def quantised_artefact(path, raw, how, own=None):
    """A tiny artefact, every matrix quantised alike but for those that `own` names."""
    config = ModelConfig.from_dict(raw)
    model = Model(config)
    weights = {name: mx.array(array) for name, array in random_tensors(config).items()}
    model.load_weights(list(model.sanitize(weights).items()))
    own = own or {}

    def predicate(name, module):
        fits = hasattr(module, "to_quantized") and module.weight.shape[-1] % how["group_size"] == 0
        return fits and own.get(name, True)

    nn.quantize(model, **how, class_predicate=predicate)
    path.mkdir()
    stored = dict(tree_flatten(model.parameters()))
    for name in [n for n in stored if "_layernorm.weight" in n and ".self_attn." in n]:
        rows = stored.pop(name)  # files have them apart
        stem = name.removesuffix("weight")
        stored |= {f"{stem}norms.{i}.weight": row + 0 for i, row in enumerate(rows)}
    mx.save_safetensors(str(path / "model.safetensors"), stored)
    config_json = {**config.to_dict(), "quantization": {**how, **own}}
    (path / "config.json").write_text(json.dumps(config_json))
    return path


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_every_variant_computes_the_same(name, variant, tmp_path):
    path = write_checkpoint(tmp_path / "m", ALL[name])
    expected = stepwise(load_model(path, mx.float32, APART))
    model = load_model(path, mx.float32, variant)
    assert ("qkv_proj" in model.layers[0].self_attn) == variant.fuse
    assert "q_proj" in model.layers[-1].self_attn  # most of a prefill does without it
    assert relative(stepwise(model), expected) < ROUNDING


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["stablelm-2-12b", "qkv-bias", "llama-bias", "llama-grouped"])
def test_quantised_matrices_are_joined_as_they_are(name, mode, tmp_path):
    bits, group_sizes = MODES[mode]
    how = {"group_size": min(group_sizes), "bits": bits[0], "mode": mode}
    path = quantised_artefact(tmp_path / "m", ALL[name], how)
    apart = load_model(path, mx.float32, APART)
    model = load_model(path, mx.float32)
    attention, old = model.layers[0].self_attn, apart.layers[0].self_attn
    assert isinstance(attention.qkv_proj, nn.QuantizedLinear)
    rows = [old.q_proj.weight, old.k_proj.weight, old.v_proj.weight]
    assert mx.array_equal(attention.qkv_proj.weight, mx.concatenate(rows))
    assert "gate_up_proj" in model.layers[0].mlp and "gate_proj" not in model.layers[0].mlp
    assert relative(stepwise(model), stepwise(apart)) < ROUNDING


@pytest.mark.parametrize(
    "own", [{"bits": 8, "group_size": 32}, {"bits": 4, "group_size": 64}, False], ids=str
)
def test_matrices_stored_in_different_ways_stay_apart(own, tmp_path):
    how = {"group_size": 32, "bits": 4, "mode": "affine"}
    names = ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj")
    path = quantised_artefact(tmp_path / "m", CONFIGS["plain"], how, dict.fromkeys(names, own))
    model = load_model(path, mx.float32)
    parts = [part for layer in model.layers for part in (layer.self_attn, layer.mlp)]
    fused = ["qkv_proj" in p or "gate_up_proj" in p for p in parts]
    # Of the last layer q, k and v are always apart.
    assert fused == [False, True, False, False]
    assert relative(stepwise(model), stepwise(load_model(path, mx.float32, APART))) < ROUNDING


@pytest.mark.parametrize(("backend", "fused"), [("cpu", False), ("metal", True), ("cuda", True)])
def test_large_matrices_stay_apart_on_a_cpu(backend, fused, tmp_path, monkeypatch):
    monkeypatch.setattr(fusing, "LARGEST_ON_CPU_BYTES", 1000)
    monkeypatch.setattr(fusing, "current_backend", lambda: backend)
    model = load_model(write_checkpoint(tmp_path / "m", CONFIGS["plain"]), mx.float32)
    assert ("gate_up_proj" in model.layers[0].mlp) == fused
    assert ("qkv_proj" in model.layers[0].self_attn) == fused


def test_a_bias_that_only_some_have_keeps_them_apart(tmp_path):
    model = Model(ModelConfig.from_dict({**CONFIGS["qkv-bias"], "num_hidden_layers": 3}))
    del model.layers[0].self_attn.k_proj["bias"]
    model.fuse()
    assert ["qkv_proj" in layer.self_attn for layer in model.layers] == [False, True, False]


@pytest.mark.parametrize("artefact", ["mlx-fp16", "mlx-int4"])
def test_a_fused_model_has_the_same_weights_for_everyone(artefact, demo_out):
    apart = load_model(demo_out / artefact, variant=APART)
    model = load_model(demo_out / artefact)
    assert get_total_parameters(model) == get_total_parameters(apart)
    assert compute_bits_per_weight(model) == compute_bits_per_weight(apart)
    assert len(tree_flatten(model.parameters())) < len(tree_flatten(apart.parameters()))
    model.set_dtype(mx.bfloat16)
    logits = model(mx.array([[1, 2, 3]]))
    assert logits.dtype == mx.bfloat16 and mx.all(mx.isfinite(logits)).item()


@pytest.mark.parametrize("variant", [APART, Variant()], ids=str)
def test_loading_never_holds_the_weights_twice(variant, tmp_path):
    raw = {**CONFIGS["plain"], "hidden_size": 256, "intermediate_size": 1024}
    path = write_checkpoint(tmp_path / "m", {**raw, "num_hidden_layers": 12})
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = load_model(path, mx.float32, variant)
    held = sum(a.nbytes for _, a in tree_flatten(model.parameters()))
    peak = mx.get_peak_memory() - before
    assert held < peak + 4096 and peak < 1.2 * held


@pytest.mark.parametrize(
    ("head_dim", "metal", "cuda"),
    [(64, 64, 64), (80, 96, 96), (96, 96, 96), (128, 128, 128), (160, 192, 160), (600, 600, 600)],
)
def test_heads_are_padded_where_the_device_gains(head_dim, metal, cuda):
    variant = Variant()
    assert variant.head_width(head_dim, "metal") == metal
    assert variant.head_width(head_dim, "cuda") == cuda
    assert variant.head_width(head_dim, "cpu") == head_dim
    assert Variant(pad=True).head_width(head_dim, "cpu") == metal
    assert Variant(pad=False).head_width(head_dim, "metal") == head_dim


def test_every_fused_width_stays_as_it_is():
    for backend, widths in FUSED_DECODE_WIDTHS.items():
        assert [Variant().head_width(w, backend) for w in widths] == list(widths)


def test_the_cache_holds_padded_heads(tmp_path):
    path = write_checkpoint(tmp_path / "m", CONFIGS["stable-code"])
    model = load_model(path, mx.float32, Variant(pad=True))
    cache = make_prompt_cache(model)
    model(mx.array([[1, 2, 3]]), cache)
    assert cache[0].keys.shape[-1] == cache[0].values.shape[-1] == 96
    assert not mx.any(cache[0].keys[..., 80:]).item()

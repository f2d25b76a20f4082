"""Logits against transformers (recorded and live) and mlx-lm, in all ways to run the network."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model as mlx_lm_load_model

from edge.errors import EdgeError
from edge.model import stablelm
from edge.model.config import ModelConfig
from edge.model.load import load_model
from edge.model.rotary import RotaryEmbedding
from edge.model.stablelm import FUSED_DECODE_WIDTHS
from edge.model.tensors import ORDER_READERS, expected_shapes, input_order_shapes
from tests.support.tiny import (
    ALL_CONFIGS,
    CONFIGS,
    DYNAMIC_CONFIGS,
    LLAMA_CONFIGS,
    MODES,
    PLAIN,
    SCALED_CONFIGS,
    quantised_tensors,
    random_tensors,
    tiny_model,
    token_ids,
    write_checkpoint,
    write_quantised,
)

REFERENCE = Path(__file__).parent / "reference_logits.npz"
TOLERANCE = 1e-4
ROUNDING = 1e-6  # float32, relative to the largest logit
ALL = CONFIGS | LLAMA_CONFIGS


@pytest.fixture(scope="module")
def reference():
    return np.load(REFERENCE)


def logits(model, lengths=(40,)):
    """Logits of chunks of these lengths, one after another with a cache."""
    ids, cache = mx.array(token_ids(model.config, sum(lengths))), make_prompt_cache(model)
    ends = np.cumsum(lengths)
    parts = [model(ids[:, e - n : e], cache)[0] for n, e in zip(lengths, ends, strict=True)]
    return np.array(mx.concatenate(parts))


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("lengths", [(40,), (1,) * 40, (7, 1, 32)], ids=len)
@pytest.mark.parametrize("name", ALL | SCALED_CONFIGS)
def test_logits_match_transformers(name, lengths, reference):
    found = logits(tiny_model(ALL_CONFIGS[name]), lengths)
    assert np.abs(found - reference[name]).max() < TOLERANCE


@pytest.mark.parametrize("name", DYNAMIC_CONFIGS)
def test_dynamic_scaling_follows_the_length_of_the_context(name, reference):
    model = tiny_model(DYNAMIC_CONFIGS[name])
    for _ in range(2):  # the second starts with a short context again
        assert np.abs(logits(model) - reference[name]).max() < TOLERANCE
        assert np.abs(logits(model, (5,)) - reference[name][:5]).max() > TOLERANCE


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_recorded_logits_match_the_installed_transformers(name, reference):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from tools.record_reference_logits import reference_logits

    assert np.abs(reference_logits(ALL_CONFIGS[name]) - reference[name]).max() < 1e-5


@pytest.mark.parametrize("name", [n for n in ALL if n != "tied"])  # no tied head in its StableLM
def test_mlx_lm_computes_the_same_from_a_written_config(name, tmp_path):
    path = write_checkpoint(tmp_path / "model", ModelConfig.from_dict(ALL[name]).to_dict())
    ours, (theirs, _) = load_model(path, mx.float32), mlx_lm_load_model(path)
    theirs.config = ours.config
    for lengths in ((40,), (1,) * 40):
        assert np.abs(logits(ours, lengths) - logits(theirs, lengths)).max() < TOLERANCE


@pytest.mark.parametrize(("dims", "base"), [(16, 10_000.0), (20, 1e6), (64, 1e6)])
def test_rotation_matches_mlx(dims, base):
    rope, how = RotaryEmbedding(dims, base), {"traditional": False, "base": base, "scale": 1.0}
    for length in (1, 5):
        x = mx.random.normal((2, 3, length, 64))
        for offset in (0, 1, 1, 700, 3):
            expected = mx.fast.rope(x, dims, offset=offset, **how)
            assert mx.allclose(rope(x, offset), expected, rtol=0, atol=2e-4)
    offset = mx.array([3, 9])  # of a batch: mlx-lm's caches change it in place
    for _ in range(2):
        expected = mx.fast.rope(x, dims, offset=offset, **how)
        assert mx.allclose(rope(x, offset), expected, rtol=0, atol=1e-5)
        offset += 1


LENGTHS = (9, 1, 6, 1, 1)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_padded_heads_and_joined_matrices_compute_the_same(name, fuse, tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "m", ALL[name])
    apart, joined = (load_model(path, mx.float32, fuse=f) for f in (False, fuse))
    monkeypatch.setitem(FUSED_DECODE_WIDTHS, "cpu", FUSED_DECODE_WIDTHS["metal"])
    padded = load_model(path, mx.float32, fuse=fuse)
    assert ("qkv_proj" in joined.layers[0].self_attn) == fuse
    assert "q_proj" in joined.layers[-1].self_attn  # most of a prefill does not need it
    for model in (joined, padded):
        assert relative(logits(model, LENGTHS), logits(apart, LENGTHS)) < ROUNDING


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["stablelm-2-12b", "qkv-bias", "llama-bias", "llama-grouped"])
def test_quantised_matrices_are_joined_without_change(name, mode, tmp_path):
    path = write_quantised(tmp_path / "m", ALL[name], {"mode": mode, **MODES[mode]})
    apart, model = (load_model(path, mx.float32, fuse=fuse) for fuse in (False, True))
    attention, old = model.layers[0].self_attn, apart.layers[0].self_attn
    assert isinstance(attention.qkv_proj, nn.QuantizedLinear)
    rows = [old.q_proj.weight, old.k_proj.weight, old.v_proj.weight]
    assert mx.array_equal(attention.qkv_proj.weight, mx.concatenate(rows))
    assert "gate_up_proj" in model.layers[0].mlp and "gate_proj" not in model.layers[0].mlp
    assert relative(logits(model, LENGTHS), logits(apart, LENGTHS)) < ROUNDING


@pytest.mark.parametrize(
    "own", [{"bits": 8, "group_size": 32}, {"bits": 4, "group_size": 64}, False], ids=str
)
def test_matrices_with_different_storage_stay_separate(own, tmp_path):
    how = {"group_size": 32, "bits": 4, "mode": "affine"}
    names = ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj")
    path = write_quantised(tmp_path / "m", PLAIN, how | dict.fromkeys(names, own))
    model = load_model(path, mx.float32)
    parts = [part for layer in model.layers for part in (layer.self_attn, layer.mlp)]
    fused = ["qkv_proj" in p or "gate_up_proj" in p for p in parts]
    assert fused == [False, True, False, False]  # the last layer's q, k and v stay separate


@pytest.mark.parametrize(("backend", "fused"), [("cpu", False), ("metal", True)])
def test_large_matrices_stay_separate_on_a_cpu(backend, fused, monkeypatch):
    monkeypatch.setattr(stablelm, "MAX_JOINED_ON_CPU_BYTES", 1000)
    monkeypatch.setattr(stablelm, "current_backend", lambda: backend)
    model = tiny_model(PLAIN)
    model.fuse()
    assert ("gate_up_proj" in model.layers[0].mlp) == fused
    assert ("qkv_proj" in model.layers[0].self_attn) == fused


AFFINE = {"group_size": 32, "bits": 8, "mode": "affine"}
O_ORDER = "model.layers.1.self_attn.o_order"


def readers(order_name):
    """Names of the matrices whose inputs a permutation gathers."""
    block, _, _ = order_name.rpartition(".")
    key = ".".join(order_name.split(".")[3:])
    return [f"{block}.{reader}.weight" for reader in ORDER_READERS[key]]


def permuted(config):
    """Random tensors with randomly permuted columns, and the permutations."""
    tensors, rng = random_tensors(config), np.random.RandomState(7)
    for name, shape in input_order_shapes(config).items():
        tensors[name] = rng.permutation(*shape).astype(np.int32)
        for weight in readers(name):
            tensors[weight] = tensors[weight][:, tensors[name]]
    return tensors


@pytest.mark.parametrize("how", [None, AFFINE], ids=["float", "quantised"])
@pytest.mark.parametrize("case", ["parallel", "grouped", "llama-bias"])
def test_permuted_columns_give_the_same_logits(case, how, tmp_path):
    """The oracle is the network with the (dequantised) matrices in their natural order."""
    config = ModelConfig.from_dict(ALL[case])
    tensors = permuted(config)
    codes = quantised_tensors(tensors, how) if how else tensors
    raw = {**ALL[case], "quantization": how}
    moved = load_model(write_checkpoint(tmp_path / "m", raw, tensors=codes), mx.float32)
    assert isinstance(moved.layers[0].self_attn.o_proj, nn.QuantizedLinear) == bool(how)
    plain = {name: tensors[name] for name in expected_shapes(config)}
    for stem in [name.removesuffix("scales") for name in codes if name.endswith(".scales")]:
        parts = (codes[f"{stem}{part}"] for part in ("weight", "scales", "biases"))
        plain[f"{stem}weight"] = np.array(mx.dequantize(*parts, **AFFINE))
    for name in input_order_shapes(config):
        for weight in readers(name):
            plain[weight] = plain[weight][:, np.argsort(tensors[name])]
    expected = load_model(write_checkpoint(tmp_path / "p", ALL[case], tensors=plain), mx.float32)
    for lengths in ((40,), (1,) * 40):
        assert np.abs(logits(moved, lengths) - logits(expected)).max() < TOLERANCE


@pytest.mark.parametrize(
    ("name", "order"),
    [
        (O_ORDER, np.r_[0, np.arange(63)].astype(np.int32)),
        (O_ORDER, np.arange(64, dtype=np.int64)),
        ("model.layers.2.mlp.gate_up_order", np.arange(64, dtype=np.int32)),
    ],
    ids=str,
)
def test_an_invalid_permutation_is_refused(name, order, tmp_path):
    tensors = {**random_tensors(ModelConfig.from_dict(PLAIN)), name: order}
    with pytest.raises(EdgeError, match=name):
        load_model(write_checkpoint(tmp_path / "m", PLAIN, tensors=tensors))

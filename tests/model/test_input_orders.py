"""Matrices whose columns are stored in another order, and the permutations beside them."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import make_prompt_cache

from edge.errors import EdgeError
from edge.model.config import ModelConfig
from edge.model.load import load_model
from edge.model.tensors import input_order_shapes
from tests.support.tiny import CONFIGS, LLAMA_CONFIGS, PLAIN, random_tensors, token_ids

TOLERANCE = 1e-4
READERS = {
    "self_attn.qkv_order": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_order": ("self_attn.o_proj",),
    "mlp.gate_up_order": ("mlp.gate_proj", "mlp.up_proj"),
}
CASES = ("parallel", "grouped", "stable-code", "llama-bias")
ALL = CONFIGS | LLAMA_CONFIGS
O_ORDER = "model.layers.1.self_attn.o_order"


def write(path, config, tensors, **more):
    path.mkdir()
    arrays = {name: mx.array(array) for name, array in tensors.items()}
    mx.save_safetensors(str(path / "model.safetensors"), arrays)
    (path / "config.json").write_text(json.dumps({**config.to_dict(), **more}))
    return path


def reordered(config, names):
    """The random checkpoint, its columns stored in random orders under those names."""
    tensors = random_tensors(config)
    rng = np.random.RandomState(7)
    for name in names:
        layer, order_name = ".".join(name.split(".")[:3]), ".".join(name.split(".")[3:])
        order = rng.permutation(input_order_shapes(config)[name][0]).astype(np.int32)
        for reader in READERS[order_name]:
            weight = f"{layer}.{reader}.weight"
            tensors[weight] = tensors[weight][:, order]
        tensors[name] = order
    return tensors


def quantised(tensors, group_size=32, bits=8):
    """Each matrix as affine codes of whatever column order it has."""
    out = {}
    for name, array in tensors.items():
        if array.ndim == 2:
            parts = mx.quantize(mx.array(array), group_size=group_size, bits=bits)
            stem = name.removesuffix("weight")
            out |= zip((name, f"{stem}scales", f"{stem}biases"), parts, strict=True)
        else:
            out[name] = array
    return out


def logits(model, token_by_token=False):
    ids = mx.array(token_ids(model.config))
    if not token_by_token:
        return np.array(model(ids))[0]
    cache = make_prompt_cache(model)
    return np.array(mx.concatenate([model(ids[:, i : i + 1], cache)[0] for i in range(40)]))


@pytest.mark.parametrize("case", CASES)
def test_the_logits_stay_the_same(case, tmp_path):
    config = ModelConfig.from_dict(ALL[case])
    plain = load_model(write(tmp_path / "plain", config, random_tensors(config)), mx.float32)
    tensors = reordered(config, input_order_shapes(config))
    moved = load_model(write(tmp_path / "moved", config, tensors), mx.float32)
    assert np.abs(logits(moved) - logits(plain)).max() < TOLERANCE
    assert np.abs(logits(moved, token_by_token=True) - logits(plain)).max() < TOLERANCE


@pytest.mark.parametrize("name", input_order_shapes(ModelConfig.from_dict(PLAIN)))
def test_each_order_alone(name, tmp_path):
    config = ModelConfig.from_dict(PLAIN)
    plain = load_model(write(tmp_path / "plain", config, random_tensors(config)), mx.float32)
    tensors = reordered(config, [name])
    moved = load_model(write(tmp_path / "moved", config, tensors), mx.float32)
    assert np.abs(logits(moved) - logits(plain)).max() < TOLERANCE
    del tensors[name]
    lost = load_model(write(tmp_path / "lost", config, tensors), mx.float32)
    assert np.abs(logits(lost) - logits(plain)).max() > 0.1


@pytest.mark.parametrize("case", CASES)
def test_quantised_matrices_in_another_order(case, tmp_path):
    """The oracle is the unquantised network on the dequantised matrices, put back in order."""
    config = ModelConfig.from_dict(ALL[case])
    orders = input_order_shapes(config)
    tensors = reordered(config, orders)
    codes = quantised(tensors)
    recipe = {"group_size": 32, "bits": 8, "mode": "affine"}
    moved = load_model(write(tmp_path / "moved", config, codes, quantization=recipe), mx.float32)
    assert isinstance(moved.layers[0].self_attn.o_proj, nn.QuantizedLinear)
    plain = {name: array for name, array in tensors.items() if name not in orders}
    for name in [n for n in codes if n.endswith(".scales")]:
        stem = name.removesuffix(".scales")
        parts = (codes[f"{stem}.{part}"] for part in ("weight", "scales", "biases"))
        plain[f"{stem}.weight"] = np.array(mx.dequantize(*parts, group_size=32, bits=8))
    for name in orders:
        layer, order_name = ".".join(name.split(".")[:3]), ".".join(name.split(".")[3:])
        for reader in READERS[order_name]:
            weight = f"{layer}.{reader}.weight"
            plain[weight] = plain[weight][:, np.argsort(tensors[name])]
    expected = load_model(write(tmp_path / "plain", config, plain), mx.float32)
    assert np.abs(logits(moved) - logits(expected)).max() < TOLERANCE


def test_orders_are_no_parameters_and_keep_their_type(tmp_path):
    config = ModelConfig.from_dict(PLAIN)
    names = input_order_shapes(config)
    model = load_model(write(tmp_path / "m", config, reordered(config, names)), mx.float32)
    before = logits(model)
    assert not any("order" in name for name, _ in tree_flatten(model.parameters()))
    model.unfreeze()
    assert not any("order" in name for name, _ in tree_flatten(model.trainable_parameters()))
    model.set_dtype(mx.float16)
    model.update(tree_map(lambda a: a.astype(mx.float32), model.parameters()))
    assert np.abs(logits(model) - before).max() < 0.1  # the weights went through float16
    grads = nn.value_and_grad(model, lambda m: m(mx.array([[1, 2]])).sum())(model)[1]
    assert mx.all(mx.isfinite(grads["model"]["layers"][0]["self_attn"]["qkv_proj"]["weight"]))


@pytest.mark.parametrize(
    ("order", "dtype"),
    [
        (np.arange(63), np.int32),
        (np.arange(65), np.int32),
        (np.arange(64).reshape(8, 8), np.int32),
        (np.arange(1, 65), np.int32),
        (np.arange(64) - 1, np.int32),
        (np.r_[0, np.arange(63)], np.int32),
        (np.arange(0), np.int32),
        (np.arange(64), np.float32),
        (np.arange(64), np.int64),
    ],
    ids=str,
)
def test_a_broken_order_is_one_sentence(order, dtype, tmp_path):
    config = ModelConfig.from_dict(PLAIN)
    tensors = {**random_tensors(config), O_ORDER: order.astype(dtype)}
    with pytest.raises(EdgeError, match=rf"{O_ORDER} is no permutation of 0 to 63") as error:
        load_model(write(tmp_path / "m", config, tensors))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.layers.2.mlp.gate_up_order", "model.layers.0.mlp.order"])
def test_an_order_that_no_matrix_reads_is_refused(name, tmp_path):
    config = ModelConfig.from_dict(PLAIN)
    tensors = {**random_tensors(config), name: np.arange(64, dtype=np.int32)}
    with pytest.raises(EdgeError, match=name):
        load_model(write(tmp_path / "m", config, tensors))

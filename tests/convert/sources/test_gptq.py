"""GPTQ checkpoints against the format's definition, and MLX's reading of the packed matrices."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from edge.convert.sources.directory import read_gptq_settings
from edge.errors import EdgeError
from edge.formats import gptq as fmt
from edge.model.config import ModelConfig
from edge.model.tensors import check_shapes
from tests.support.gptq_packer import (
    DOWN,
    GATE,
    LAYER,
    LLAMA,
    ONE_LAYER,
    STABLELM,
    UP,
    K,
    O,
    Q,
    Settings,
    V,
    one_layer,
    open_gptq,
    write_gptq,
)
from tests.support.tiny import edit

# Branches of TheBloke/stable-code-3b-GPTQ and CodeLlama-13B-GPTQ, and others.
CASES = [
    (STABLELM, Settings(4, 128)),
    (STABLELM, Settings(8, -1)),
    (LLAMA, Settings(4, 128, act_order=False)),
    (ONE_LAYER, Settings(2, 64)),
    (ONE_LAYER, Settings(3, 32)),
    (ONE_LAYER, Settings(4, 64, static_groups=True)),
    (ONE_LAYER, Settings(4, 64, stored_as="gptq_v2")),
    (ONE_LAYER, Settings(4, 64, act_order=False, g_idx=False)),
    (ONE_LAYER, Settings(4, 256, overrides={"down_proj": {"group_size": 192}})),
    (ONE_LAYER, Settings(8, 128, sym=False, stored_as="gptq_v2")),
    (ONE_LAYER, Settings(act_order=False, overrides={"v_proj": {"bits": 8, "group_size": 32}})),
]


def stem(name):
    return name.removesuffix(".weight")


def check_everything(matrices, ordinary, weights):
    for name, array in ordinary.items():
        assert np.array_equal(weights.read(name), array)
        assert weights.packing(name) is None
    for stem, matrix in matrices.items():
        down = matrices[f"{stem.rpartition('.')[0].replace('self_attn', 'mlp')}.down_proj"]
        folded, name = stem.endswith(("gate_proj", "up_proj")), f"{stem}.weight"
        read, dense = weights.read(name), matrix.dense()
        assert (read.dtype, read.shape) == (np.float32, weights.shapes[name])
        assert np.array_equal(read, dense)
        assert np.array_equal(weights.read(name, 5, 20), dense[5:20])
        check_packed(matrix, name, weights, down.in_turn() if folded else slice(None))


def check_packed(matrix, name, weights, rows):
    """Codes and scales bit for bit, rows in this order, and MLX's values of them."""
    packed, columns = weights.read_packed(name), matrix.in_turn()
    packing = packed.packing
    assert packing == weights.packing(name)
    assert np.array_equal(fmt.unpack(packed.codes, packing.bits), matrix.codes[columns].T[rows])
    scales = matrix.scales.T[rows].repeat(packed.scales.shape[1] // len(matrix.scales), axis=1)
    assert packed.scales.tobytes() == scales.tobytes()
    assert packing.permuted == (packed.input_order is not None)
    if name == DOWN or np.array_equal(columns, np.arange(len(columns))):
        assert packed.input_order is None
    elif "down" not in name:
        assert packed.input_order.dtype == np.int32
        assert np.array_equal(packed.input_order, columns)
    parts = (mx.array(part.astype(np.float32)) for part in (packed.scales, packed.biases))
    dense = mx.dequantize(mx.array(packed.codes), *parts, packing.group_size, packing.bits)
    difference = np.abs(np.array(dense) - matrix.dense()[rows][:, columns])
    if packed.bias_error_steps == 0:
        assert not difference.any()
    else:  # the stated error
        steps = packed.scales.astype(float).repeat(packing.group_size, axis=1)
        assert (difference / steps).max() == pytest.approx(packed.bias_error_steps, rel=0.01)


@pytest.mark.parametrize(("raw", "how"), CASES, ids=str)
def test_every_variant_of_checkpoint_is_exact(tmp_path, monkeypatch, raw, how):
    monkeypatch.setattr(fmt, "BLOCK_OUTPUTS", 100)
    matrices, ordinary = write_gptq(tmp_path / "m", raw, how)
    weights = open_gptq(tmp_path / "m")
    check_shapes(ModelConfig.from_dict(raw).matching(weights.shapes), weights.shapes, "m")
    assert not weights.unpackable
    assert not weights.warnings
    check_everything(matrices, ordinary, weights)
    if how.sym:
        assert all(weights.read_packed(f"{s}.weight").bias_error_steps == 0 for s in matrices)


def test_settings_are_read_under_old_and_new_names(tmp_path):
    for nested in (None, "gptq", {"quant_method": "awq"}, {"bits": 4}):
        assert read_gptq_settings({"quantization_config": nested}, tmp_path) is None
    nested = {"quant_method": "gptq", "bits": 8, "group_size": None, "format": "gptq_v2"}
    found = read_gptq_settings({"quantization_config": nested}, tmp_path)
    assert (found.bits, found.group_size, found.checkpoint_format) == (8, -1, "gptq_v2")
    assert found.where == str(tmp_path / "config.json")
    (tmp_path / "quantize_config.json").write_text('{"w_bit": 3, "q_group_size": 32}')
    found = read_gptq_settings({}, tmp_path)
    assert (found.bits, found.group_size, found.sym) == (3, 32, True)
    assert found.checkpoint_format == "gptq"
    for values, words in (
        ({"bits": 5}, "5 - at `\\$.bits`"),
        ({"is_marlin_format": True}, "'marlin'"),
    ):
        with pytest.raises(EdgeError, match=rf"quantize_config\.json: .*{words}"):
            read_gptq_settings({"quantization_config": values}, tmp_path)


@pytest.mark.parametrize("stored_as", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("overrides", [{}, {"q_proj": {"sym": False}}])
def test_a_wrong_label_of_zero_points_is_corrected_with_a_warning(tmp_path, stored_as, overrides):
    how = Settings(4, 64, stored_as=stored_as, overrides=overrides)
    matrices, _ = write_gptq(tmp_path, ONE_LAYER, how)
    label = "gptq_v2" if stored_as == "gptq" else "gptq"
    edit(tmp_path, "quantize_config.json", lambda raw: raw.update(checkpoint_format=label))
    weights = open_gptq(tmp_path)
    assert f"stored as '{label}', but some are not" in weights.warnings[0]
    for stem, matrix in matrices.items():
        assert np.array_equal(weights.read(f"{stem}.weight"), matrix.dense())


@pytest.mark.parametrize(
    ("stored_as", "stored", "meant", "warns"),
    [("gptq", -1, 0, True), ("gptq_v2", -1, 15, False), ("gptq_v2", 0, 0, False)],
)
def test_a_zero_point_of_0_in_format_1_gives_a_warning(tmp_path, stored_as, stored, meant, warns):
    def set_all(tensors):
        tensors[f"{LAYER}mlp.up_proj.qzeros"][:] = stored

    how = Settings(4, 64, sym=False, stored_as=stored_as)
    matrices, weights = one_layer(tmp_path, how, change=set_all)
    assert any("a zero point of 0" in warning for warning in weights.warnings) == warns
    matrix = matrices[stem(UP)]
    same = replace(matrix, zeros=np.full_like(matrix.zeros, meant))
    assert np.array_equal(weights.read(UP), same.dense())


@pytest.mark.parametrize(
    ("how", "refused", "reason"),
    [
        (Settings(4, 16), (Q, K, V, O, GATE, UP, DOWN), "groups of 16"),
        (Settings(4, 160, act_order=False), (Q, K, V, O, GATE, UP), "different sizes"),
        (Settings(overrides={"k_proj": {"group_size": 64}}), (Q, K, V), "share an input order"),
        (Settings(overrides={"up_proj": {"group_size": 16}}), (GATE,), "share an input order"),
        (Settings(overrides={"up_proj": {"group_size": 16}}), (DOWN,), "up_proj packed too"),
    ],
)
def test_matrices_that_mlx_cannot_store_have_a_reason_and_are_read(tmp_path, how, refused, reason):
    matrices, weights = one_layer(tmp_path, how)
    for name in refused:
        assert weights.packing(name) is None
        assert reason in weights.unpackable[name]
        assert np.array_equal(weights.read(name), matrices[stem(name)].dense())
    for name in {f"{matrix}.weight" for matrix in matrices} - set(weights.unpackable):
        assert weights.packing(name) is not None
    if refused == (DOWN,):  # then rows keep their order
        for name in {GATE, UP} - set(weights.unpackable):
            check_packed(matrices[stem(name)], name, weights, slice(None))


@pytest.mark.parametrize(
    ("value", "reason"), [(1 + 2**-20, "do not fit float16"), (9000.0, "so large")]
)
def test_scales_that_float16_cannot_hold_are_not_packed(tmp_path, value, reason):
    def widen(tensors):
        scales = tensors[f"{LAYER}self_attn.o_proj.scales"].astype(np.float32)
        scales[1, 7] = value
        tensors[f"{LAYER}self_attn.o_proj.scales"] = scales

    matrices, weights = one_layer(tmp_path, change=widen)
    assert reason in weights.unpackable[O]
    matrix = matrices[stem(O)]
    codes = matrix.codes[matrix.group_of == 1, 7].astype(int) - 8
    read = weights.read(O, 7, 8)[0, matrix.group_of == 1]
    assert np.array_equal(read, np.float32(value) * codes.astype(np.float32))


def test_float32_scales_and_the_zero_g_idx_of_old_writers_are_read(tmp_path):
    def change(tensors):
        for name, array in tensors.items():
            if name.endswith(".scales"):
                tensors[name] = array.astype(np.float32)
            elif name.endswith(".g_idx"):
                tensors[name] = np.zeros_like(array, dtype=np.int64)

    matrices, weights = one_layer(tmp_path, Settings(4, 64, act_order=False), change=change)
    assert not weights.unpackable
    check_everything(matrices, {}, weights)


@pytest.mark.parametrize("used", [None, "q", "o"])
def test_zero_biases_of_old_writers_are_dropped_unless_one_is_used(tmp_path, used):
    def use(tensors):
        if used:
            tensors[f"{LAYER}self_attn.{used}_proj.bias"][3] = 0.5

    if used == "o":
        with pytest.raises(EdgeError, match=r"o_proj\.bias is a nonzero bias"):
            one_layer(tmp_path, zero_biases=True, change=use)
        return
    matrices, weights = one_layer(tmp_path, zero_biases=True, change=use)
    config = ModelConfig.from_dict(ONE_LAYER).matching(weights.shapes)
    assert config.use_qkv_bias == (used is not None)
    check_shapes(config, weights.shapes, "m")
    check_everything(matrices, {}, weights)
    if used:
        assert weights.read(f"{LAYER}self_attn.{used}_proj.bias")[3] == 0.5


def test_a_matrix_is_loaded_once_for_many_threads(tmp_path, monkeypatch):
    _, weights = one_layer(tmp_path)
    unpack, loads, both = fmt.zero_points, [], threading.Barrier(2)

    def counted(*args):
        loads.append(args)
        with suppress(threading.BrokenBarrierError):  # a second load does not come
            both.wait(timeout=0.2)
        return unpack(*args)

    monkeypatch.setattr(fmt, "zero_points", counted)
    starts = range(0, weights.shapes[Q][0], 32)
    with ThreadPoolExecutor(8) as threads:
        rows = list(threads.map(lambda start: weights.read(Q, start, start + 32), starts))
    assert len(loads) == 1
    assert np.array_equal(np.concatenate(rows), weights.read(Q))


@pytest.mark.parametrize("bits", fmt.BITS)
def test_symmetric_biases_are_exact_down_to_subnormal_scales(bits):
    scales = np.array([[6e-8, 1e-5, 0.0123, 1.0, 0.0]], np.float16)
    zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
    biases, error = fmt.affine_biases(zeros, scales)
    assert error == 0
    assert np.array_equal(biases.astype(float), -scales.astype(float) * (1 << (bits - 1)))


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("qweight", lambda a: a[:-1], "has 31 rows for 256 inputs"),
        ("qweight", lambda a: a.astype(np.int64), "is I64 of shape"),
        ("qzeros", lambda a: a[:, :-1], "has 31 columns for 256 outputs"),
        ("scales", lambda a: None, "is missing"),
        ("scales", lambda a: a * np.float16(np.nan), "not finite"),
        ("g_idx", lambda a: a + 1, "outside 0 to 1"),
        ("weight", lambda a: np.ones((256, 256), np.float16), "is also stored quantised"),
        ("other", lambda a: np.ones(4, np.int32), "is stored as I32, not as a float"),
    ],
)
def test_a_damaged_tensor_is_named(tmp_path, part, change, words):
    name = f"{LAYER}self_attn.o_proj.{part}"

    def damage(tensors):
        changed = change(tensors.pop(name, None))
        if changed is not None:
            tensors[name] = np.ascontiguousarray(changed)

    with pytest.raises(EdgeError, match=rf"{LAYER}self_attn\.o_proj\..*{words}"):
        one_layer(tmp_path, change=damage)

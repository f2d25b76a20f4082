import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from edge.convert.sources.gptq import is_gptq, read_gptq_settings
from edge.errors import EdgeError
from edge.formats import gptq as fmt
from edge.model.config import ModelConfig
from edge.model.tensors import check_shapes
from tests.support.gptq_checkpoints import (
    DOWN,
    GATE,
    LAYER,
    ONE_LAYER,
    UP,
    K,
    O,
    Q,
    V,
    one_layer,
    open_gptq,
)
from tests.support.gptq_packer import LLAMA, STABLELM, Settings, make, write_gptq

# Every branch of TheBloke/stable-code-3b-GPTQ.
STABLE_CODE = {
    "main": Settings(4, 128),
    "gptq-4bit-32g-actorder_True": Settings(4, 32),
    "gptq-8bit--1g-actorder_True": Settings(8, -1),
    "gptq-8bit-128g-actorder_True": Settings(8, 128),
    "gptq-8bit-32g-actorder_True": Settings(8, 32),
    "gptq-4bit-64g-actorder_True": Settings(4, 64),
}
# Every branch of TheBloke/CodeLlama-13B-GPTQ.
CODE_LLAMA = {
    "main": Settings(4, 128, act_order=False),
    "gptq-4bit-32g-actorder_True": Settings(4, 32),
    "gptq-4bit-64g-actorder_True": Settings(4, 64),
    "gptq-4bit-128g-actorder_True": Settings(4, 128),
    "gptq-8bit--1g-actorder_True": Settings(8, -1),
    "gptq-8bit-128g-actorder_True": Settings(8, 128),
}
BRANCHES = [
    *(pytest.param(STABLELM, s, id=f"stable-code-{name}") for name, s in STABLE_CODE.items()),
    *(pytest.param(LLAMA, s, id=f"codellama-{name}") for name, s in CODE_LLAMA.items()),
]
# What the cards do not have and other checkpoints do.
OTHERS = {
    "2-bit": Settings(2, 64),
    "3-bit": Settings(3, 128),
    "3-bit-in-turn": Settings(3, 32, act_order=False),
    "4-bit-one-group": Settings(4, -1, act_order=False),
    "static-groups": Settings(4, 64, static_groups=True),
    "v2": Settings(4, 64, stored_as="gptq_v2"),
    "v2-8-bit": Settings(8, 32, stored_as="gptq_v2"),
    "no-g_idx": Settings(4, 64, act_order=False, g_idx=False),
    "256-in-a-group": Settings(4, 256, overrides={"down_proj": {"group_size": 192}}),
    "asymmetric": Settings(4, 64, sym=False, stored_as="gptq_v2"),
    "asymmetric-8-bit": Settings(8, 128, sym=False, stored_as="gptq_v2"),
}


def unpacked(packed):
    """What MLX makes of it, (out, in); columns as they are stored."""
    scales, biases = (mx.array(part.astype(np.float32)) for part in (packed.scales, packed.biases))
    packing = packed.packing
    return np.array(
        mx.dequantize(mx.array(packed.codes), scales, biases, packing.group_size, packing.bits)
    )


def in_turn(matrix):
    """The order that brings a matrix's groups together."""
    return np.argsort(matrix.group_of, kind="stable")


def check_everything(matrices, ordinary, weights):
    for name, array in ordinary.items():
        assert np.array_equal(weights.read(name), array)
        assert weights.packing(name) is None
    for stem, matrix in matrices.items():
        down = matrices[f"{stem.rpartition('.')[0].replace('self_attn', 'mlp')}.down_proj"]
        folded = stem.endswith(("gate_proj", "up_proj"))
        check_read(matrix, f"{stem}.weight", weights)
        check_packed(matrix, f"{stem}.weight", weights, in_turn(down) if folded else slice(None))


def check_read(matrix, name, weights):
    dense = matrix.dense()
    read = weights.read(name)
    assert read.dtype == np.float32
    assert weights.shapes[name] == read.shape
    assert np.array_equal(read, dense)
    assert np.array_equal(weights.read(name, 5, 20), dense[5:20])


def check_packed(matrix, name, weights, rows):
    """Codes and scales bit for bit, rows in this order, and what MLX makes of them."""
    packed, columns = weights.read_packed(name), in_turn(matrix)
    assert packed.packing == weights.packing(name)
    codes = fmt.unpack(packed.codes, packed.packing.bits)
    assert np.array_equal(codes, matrix.codes[columns].T[rows])
    scales = matrix.scales.T[rows].repeat(packed.scales.shape[1] // len(matrix.scales), axis=1)
    assert packed.scales.tobytes() == scales.tobytes()
    check_order(name, packed, columns)
    dense = unpacked(packed)
    check_values(packed, dense, matrix.dense()[rows][:, columns])
    if packed.input_order is not None and not packed.bias_error_steps:
        back = np.empty_like(dense)
        back[:, packed.input_order] = dense
        assert np.array_equal(back, matrix.dense()[rows])


def check_order(name, packed, columns):
    assert packed.packing.permuted == (packed.input_order is not None)
    if name.endswith("down_proj.weight") or np.array_equal(columns, np.arange(len(columns))):
        assert packed.input_order is None
    else:
        assert packed.input_order.dtype == np.int32
        assert np.array_equal(packed.input_order, columns)


def check_values(packed, dense, wanted):
    """Exact if the biases are; otherwise off by the error that is stated, and no more."""
    difference = np.abs(dense - wanted)
    if packed.bias_error_steps == 0:
        assert not difference.any()
    else:
        steps = packed.scales.astype(float).repeat(packed.packing.group_size, axis=1)
        worst = (difference / steps).max()
        assert worst == pytest.approx(packed.bias_error_steps, rel=0.01)


@pytest.mark.parametrize(("raw", "how"), BRANCHES)
def test_every_branch_of_both_cards_is_exact(tmp_path, raw, how):
    matrices, ordinary = write_gptq(tmp_path / "m", raw, how)
    weights = open_gptq(tmp_path / "m")
    check_shapes(ModelConfig.from_dict(raw).matching(weights.shapes), weights.shapes, "m")
    assert not weights.unpackable
    assert not weights.warnings
    check_everything(matrices, ordinary, weights)
    assert all(weights.read_packed(f"{stem}.weight").bias_error_steps == 0 for stem in matrices)


@pytest.mark.parametrize("how", OTHERS.values(), ids=OTHERS)
def test_what_other_checkpoints_have_is_exact(tmp_path, how):
    matrices, ordinary = write_gptq(tmp_path / "m", ONE_LAYER, how, seed=1)
    weights = open_gptq(tmp_path / "m")
    assert not weights.unpackable
    assert not weights.warnings
    check_everything(matrices, ordinary, weights)


# ---- Which checkpoints are GPTQ's


@pytest.mark.parametrize("inside", [True, False])
def test_settings_beside_the_weights_or_in_the_config(tmp_path, inside):
    how = Settings(8, 64, act_order=False, sym=False, stored_as="gptq_v2")
    write_gptq(tmp_path, ONE_LAYER, how, inside_config=inside)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert is_gptq(raw, tmp_path)
    found = read_gptq_settings(raw, tmp_path)
    assert (found.bits, found.group_size, found.sym, found.desc_act) == (8, 64, False, False)
    assert found.checkpoint_format == "gptq_v2"
    assert found.where.endswith("config.json" if inside else "quantize_config.json")


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"quantization_config": None},
        {"quantization_config": "gptq"},
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        {"quantization_config": {"group_size": 64, "bits": 4, "mode": "affine"}},
    ],
)
def test_other_checkpoints_are_not_gptq(tmp_path, raw):
    assert not is_gptq(raw, tmp_path)


def settings_from(tmp_path, **values):
    raw = {"quant_method": "gptq", "bits": 4, "group_size": 128, **values}
    return read_gptq_settings({"quantization_config": raw}, tmp_path)


def test_old_names_and_defaults(tmp_path):
    (tmp_path / "quantize_config.json").write_text('{"w_bit": 3, "q_group_size": 32}')
    found = read_gptq_settings({}, tmp_path)
    assert (found.bits, found.group_size) == (3, 32)
    assert (found.sym, found.desc_act, found.checkpoint_format) == (True, False, "gptq")
    assert settings_from(tmp_path, group_size=None).group_size == -1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"quant_method": "awq"}, "quantised as 'awq'"),
        ({"checkpoint_format": "marlin"}, "quantised as 'marlin'"),
        ({"checkpoint_format": "bitblas"}, "quantised as 'bitblas'"),
        ({"format": "gemm"}, "quantised as 'gemm'"),
        ({"is_marlin_format": True}, "quantised as 'marlin'"),
        ({"checkpoint_format": ["gptq"]}, "quantised as"),
        ({"pack_dtype": "int8"}, "packed in 'int8'"),
        ({"bits": 5}, "bits is 5"),
        ({"bits": "4"}, "bits is '4'"),
        ({"bits": None}, "bits is None"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": -2}, "group_size is -2"),
        ({"group_size": 10**20}, "group_size is 1000"),
        ({"group_size": True}, "group_size is True"),
        ({"sym": "false"}, "sym is 'false'"),
        ({"desc_act": 1}, "desc_act is 1"),
    ],
)
def test_other_methods_and_impossible_values_are_refused(tmp_path, values, words):
    with pytest.raises(EdgeError, match=words) as error:
        settings_from(tmp_path, **values)
    assert str(tmp_path / "config.json") in str(error.value)


# ---- Zero points


@pytest.mark.parametrize("stored_as", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", fmt.BITS)
def test_a_wrong_label_is_seen_and_said(tmp_path, stored_as, bits):
    how = Settings(bits, 64, stored_as=stored_as)
    matrices, _ = write_gptq(tmp_path, ONE_LAYER, how)
    label = "gptq_v2" if stored_as == "gptq" else "gptq"
    config = tmp_path / "quantize_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "checkpoint_format": label}))
    weights = open_gptq(tmp_path)
    assert len(weights.warnings) == 1
    assert f"stored as '{label}', but 7 of 7 matrices" in weights.warnings[0]
    for stem, matrix in matrices.items():
        assert np.array_equal(weights.read(f"{stem}.weight"), matrix.dense())


def test_a_symmetric_label_over_other_zero_points_is_said(tmp_path):
    def relabel(tensors):
        tensors[f"{LAYER}self_attn.q_proj.qzeros"][:] = 0x21212121

    _, weights = one_layer(tmp_path, Settings(4, 64), change=relabel)
    assert len(weights.warnings) == 1
    assert "symmetric, but those of 1 of 7" in weights.warnings[0]
    packed = weights.read_packed(Q)
    zeros = -packed.biases.astype(float) / packed.scales.astype(float)
    assert np.allclose(zeros[0::2], 2, atol=0.01)
    assert np.allclose(zeros[1::2], 3, atol=0.01)


def test_a_matrix_that_does_not_tell_is_like_the_others(tmp_path):
    """An override may make one matrix asymmetric; the rest show the file's format."""
    how = Settings(4, 64, overrides={"q_proj": {"sym": False}})
    matrices, _ = write_gptq(tmp_path, ONE_LAYER, how)
    config = tmp_path / "quantize_config.json"
    raw = json.loads(config.read_text())
    config.write_text(json.dumps({**raw, "checkpoint_format": "gptq_v2"}))
    weights = open_gptq(tmp_path)
    assert np.array_equal(weights.read(Q), matrices[Q.removesuffix(".weight")].dense())


@pytest.mark.parametrize(
    ("stored_as", "stored", "meant", "warns"),
    [("gptq", -1, 0, True), ("gptq_v2", -1, 15, False), ("gptq_v2", 0, 0, False)],
)
def test_a_zero_point_of_0_is_unclear_in_the_first_format(
    tmp_path, stored_as, stored, meant, warns
):
    def set_all(tensors):
        tensors[f"{LAYER}mlp.up_proj.qzeros"][:] = stored

    how = Settings(4, 64, sym=False, stored_as=stored_as)
    matrices, weights = one_layer(tmp_path, how, change=set_all)
    assert any("a zero point of 0" in warning for warning in weights.warnings) == warns
    matrix = matrices[UP.removesuffix(".weight")]
    same = replace(matrix, zeros=np.full_like(matrix.zeros, meant))
    assert np.array_equal(weights.read(UP), same.dense())


# ---- What has no place in an artefact


def test_overrides_of_single_matrices_are_honoured(tmp_path):
    how = Settings(
        4,
        128,
        act_order=False,
        overrides={"v_proj": {"bits": 8, "group_size": 32}, "down_proj": {"bits": 3}},
    )
    matrices, weights = one_layer(tmp_path, how)
    check_everything(matrices, {}, weights)
    packings = [weights.packing(name) for name in (Q, V, DOWN)]
    assert [(p.bits, p.group_size) for p in packings] == [(4, 128), (8, 32), (3, 128)]


@pytest.mark.parametrize(
    ("how", "refused", "reason"),
    [
        (Settings(4, 16, act_order=False), (Q, K, V, O, GATE, UP, DOWN), "groups of 16"),
        (Settings(4, 16), (Q, K, V, O, GATE, UP, DOWN), "groups of 16"),
        (Settings(4, 160, act_order=False), (Q, K, V, O, GATE, UP, DOWN), "different sizes"),
        (Settings(overrides={"k_proj": {"group_size": 64}}), (Q, K, V), "no order of inputs"),
        (Settings(overrides={"up_proj": {"group_size": 64}}), (GATE, UP), "no order of inputs"),
        (Settings(overrides={"up_proj": {"group_size": 16}}), (GATE,), "no order of inputs"),
        (Settings(overrides={"up_proj": {"group_size": 16}}), (DOWN,), "up_proj packed too"),
        (Settings(overrides={"q_proj": {"group_size": -1}}), (K, V), "no order of inputs"),
    ],
)
def test_what_mlx_cannot_hold_has_a_reason_and_is_still_read(tmp_path, how, refused, reason):
    matrices, weights = one_layer(tmp_path, how)
    for name in refused:
        assert weights.packing(name) is None
        assert reason in weights.unpackable[name]
        with pytest.raises(ValueError, match="no packing"):
            weights.read_packed(name)
        assert np.array_equal(weights.read(name), matrices[name.removesuffix(".weight")].dense())
    for name in set(map("{}.weight".format, matrices)) - set(weights.unpackable):
        assert weights.packing(name) is not None


def test_without_gate_and_up_packed_down_is_not_folded_into_them(tmp_path):
    """One order for each of gate and up, and down in turn: all three keep their rows."""
    how = Settings(overrides={"down_proj": {"group_size": 16}})
    matrices, weights = one_layer(tmp_path, how)
    assert "groups of 16" in weights.unpackable[DOWN]
    for name in (GATE, UP):
        check_packed(matrices[name.removesuffix(".weight")], name, weights, slice(None))


def test_down_in_turn_leaves_rows_alone_even_if_gate_cannot_be_packed(tmp_path):
    how = Settings(overrides={"down_proj": {"act_order": False}, "gate_proj": {"group_size": 16}})
    matrices, weights = one_layer(tmp_path, how)
    check_packed(matrices[DOWN.removesuffix(".weight")], DOWN, weights, slice(None))
    assert GATE in weights.unpackable and UP in weights.unpackable


def test_a_matrix_left_unquantised_has_the_networks_order(tmp_path):
    """GPTQModel can leave modules out; the rest of the family is then dequantised."""

    def leave_out_k(tensors):
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            del tensors[f"{LAYER}self_attn.k_proj.{part}"]
        tensors[K] = np.ones((128, 256), np.float16)

    _, weights = one_layer(tmp_path, change=leave_out_k)
    assert weights.shapes[K] == (128, 256)
    assert (weights.read(K, 3, 4) == 1).all()
    assert set(weights.unpackable) == {Q, V}
    assert K not in weights.unpackable


@pytest.mark.parametrize("act_order", [True, False])
def test_a_quantised_head_is_packed_unless_it_has_an_order(tmp_path, act_order):
    head = make(ONE_LAYER, Settings(act_order=act_order))[0][O.removesuffix(".weight")]

    def quantise_head(tensors):
        del tensors["lm_head.weight"]
        tensors.update(head.tensors("lm_head", Settings()))

    _, weights = one_layer(tmp_path, change=quantise_head)
    assert np.array_equal(weights.read("lm_head.weight"), head.dense())
    assert ("lm_head.weight" in weights.unpackable) == act_order
    assert (weights.packing("lm_head.weight") is None) == act_order


@pytest.mark.parametrize(
    ("value", "reason"),
    [(1 + 2**-20, "do not fit float16"), (1e6, "do not fit float16"), (9000.0, "so large")],
)
def test_scales_that_float16_cannot_hold(tmp_path, value, reason):
    def widen(tensors):
        scales = tensors[f"{LAYER}self_attn.o_proj.scales"].astype(np.float32)
        scales[1, 7] = value
        tensors[f"{LAYER}self_attn.o_proj.scales"] = scales

    matrices, weights = one_layer(tmp_path, change=widen)
    assert reason in weights.unpackable[O]
    matrix = matrices[O.removesuffix(".weight")]
    codes = matrix.codes[matrix.group_of == 1, 7].astype(int) - 8
    read = weights.read(O, 7, 8)[0, matrix.group_of == 1]
    assert np.array_equal(read, np.float32(value) * codes.astype(np.float32))


def test_float32_scales_that_float16_holds_are_packed(tmp_path):
    def widen(tensors):
        for name in tensors:
            if name.endswith(".scales"):
                tensors[name] = tensors[name].astype(np.float32)

    matrices, weights = one_layer(tmp_path, change=widen)
    assert not weights.unpackable
    check_everything(matrices, {}, weights)


def test_a_g_idx_of_zeros_says_nothing(tmp_path):
    def clear(tensors):
        for name in tensors:
            if name.endswith(".g_idx"):
                tensors[name][:] = 0

    matrices, weights = one_layer(tmp_path, Settings(4, 64, act_order=False), change=clear)
    check_everything(matrices, {}, weights)


def test_a_g_idx_of_64_bits(tmp_path):
    def widen(tensors):
        for name in tensors:
            if name.endswith(".g_idx"):
                tensors[name] = tensors[name].astype(np.int64)

    matrices, weights = one_layer(tmp_path, change=widen)
    check_everything(matrices, {}, weights)


# ---- Biases


def test_zero_biases_of_old_writers_are_dropped(tmp_path):
    matrices, weights = one_layer(tmp_path, zero_biases=True)
    assert not any(name.endswith("proj.bias") for name in weights.shapes)
    config = ModelConfig.from_dict(ONE_LAYER).matching(weights.shapes)
    assert not config.use_qkv_bias
    check_shapes(config, weights.shapes, "m")
    check_everything(matrices, {}, weights)


@pytest.mark.parametrize("used", ["q", "v"])
def test_biases_of_q_k_and_v_stay_if_one_is_used(tmp_path, used):
    def use(tensors):
        tensors[f"{LAYER}self_attn.{used}_proj.bias"][3] = 0.5

    _, weights = one_layer(tmp_path, zero_biases=True, change=use)
    config = ModelConfig.from_dict(ONE_LAYER).matching(weights.shapes)
    assert config.use_qkv_bias
    check_shapes(config, weights.shapes, "m")
    assert weights.read(f"{LAYER}self_attn.{used}_proj.bias")[3] == 0.5
    assert weights.packing(f"{LAYER}self_attn.{used}_proj.bias") is None


def test_zero_biases_stay_where_the_config_asks_for_them(tmp_path):
    raw = {**ONE_LAYER, "use_qkv_bias": True}
    write_gptq(tmp_path, raw, Settings(), zero_biases=True)
    weights = open_gptq(tmp_path)
    check_shapes(ModelConfig.from_dict(raw), weights.shapes, "m")


@pytest.mark.parametrize("name", ["self_attn.o_proj", "mlp.down_proj"])
def test_a_bias_that_the_network_has_no_place_for(tmp_path, name):
    def use(tensors):
        tensors[f"{LAYER}{name}.bias"][0] = 1

    with pytest.raises(EdgeError, match=rf"{name}\.bias is a bias that is not zero"):
        one_layer(tmp_path, zero_biases=True, change=use)


def test_a_bias_of_gate_would_have_to_follow_its_rows(tmp_path):
    """Llama may have one: then the rows stay, and down is not packed."""
    raw = {**LLAMA, "num_hidden_layers": 1, "mlp_bias": True}
    matrices, _ = write_gptq(tmp_path, raw, Settings(), zero_biases=True)
    weights = open_gptq(tmp_path)
    assert "leaves no place for" in weights.unpackable[DOWN]
    for name in (GATE, UP):
        check_packed(matrices[name.removesuffix(".weight")], name, weights, slice(None))


def test_a_matrix_is_loaded_once_for_many_threads(tmp_path, monkeypatch):
    _, weights = one_layer(tmp_path / "m")
    load, loads = weights._load, []
    both = threading.Barrier(2)

    def counted(stem):
        loads.append(stem)
        with suppress(threading.BrokenBarrierError):  # a second one does not come
            both.wait(timeout=0.2)
        return load(stem)

    monkeypatch.setattr(weights, "_load", counted)
    starts = range(0, weights.shapes[Q][0], 32)
    with ThreadPoolExecutor(8) as threads:
        rows = list(threads.map(lambda start: weights.read(Q, start, start + 32), starts))
    assert loads == [Q.removesuffix(".weight")]
    assert np.array_equal(np.concatenate(rows), weights.read(Q))

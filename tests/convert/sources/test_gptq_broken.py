"""GPTQ checkpoints that contradict themselves: a sentence, or weights, never a crash."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.formats import gptq as fmt
from tests.support.gptq_checkpoints import (
    DOWN,
    GATE,
    LAYER,
    ONE_LAYER,
    SMALL,
    UP,
    K,
    O,
    Q,
    V,
    one_layer,
    open_gptq,
)
from tests.support.gptq_packer import Settings, network_tensors, write_gptq


def replaced(name, change):
    """An edit of one tensor."""

    def edit(tensors):
        array = change(tensors[f"{LAYER}{name}"])
        tensors[f"{LAYER}{name}"] = np.ascontiguousarray(array)

    return edit


def with_value(index, value):
    def change(array):
        array = array.copy()
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("qweight", lambda a: a[:-1], "has 31 rows for 256 inputs"),
        ("qweight", lambda a: a[:, :-1], "scales has shape"),
        ("qweight", lambda a: a.ravel(), "of shape"),
        ("qweight", lambda a: a[:0], "of shape"),
        ("qweight", lambda a: a.astype(np.int64), "is I64"),
        ("qzeros", lambda a: a[:, :-1], "has 31 columns for 256 outputs"),
        ("qzeros", lambda a: a[:-1], "scales has shape"),
        ("scales", lambda a: a[:-1], "scales has shape"),
        ("scales", lambda a: a.astype(np.int32), "is I32"),
        ("scales", with_value((1, 5), np.nan), "not finite"),
        ("scales", with_value((0, 0), -np.inf), "not finite"),
        ("g_idx", lambda a: a[:-1], "rows for 255 inputs"),
        ("g_idx", lambda a: a[:0], "of shape"),
        ("g_idx", lambda a: a.astype(np.float32), "is F32"),
        ("g_idx", with_value(9, -1), "outside 0 to 1"),
        ("g_idx", with_value(9, 2), "outside 0 to 1"),
    ],
)
def test_parts_that_contradict_each_other_are_named(tmp_path, part, change, words):
    name = f"self_attn.o_proj.{part}"
    with pytest.raises(EdgeError, match=words) as error:
        one_layer(tmp_path, change=replaced(name, change))
    assert f"{LAYER}self_attn.o_proj." in str(error.value)


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_a_missing_part_is_named(tmp_path, part):
    name = f"{LAYER}mlp.up_proj.{part}"
    with pytest.raises(EdgeError, match=r"mlp\.up_proj"):
        one_layer(tmp_path, change=lambda tensors: tensors.pop(name))


def test_without_g_idx_groups_must_divide_the_inputs(tmp_path):
    def spoil(tensors):
        del tensors[f"{LAYER}self_attn.o_proj.g_idx"]
        for part in ("scales", "qzeros"):
            name = f"{LAYER}self_attn.o_proj.{part}"
            tensors[name] = np.repeat(tensors[name], 150, axis=0)

    with pytest.raises(EdgeError, match=r"o_proj\.scales has 300 groups for 256 inputs"):
        one_layer(tmp_path, change=spoil)


def test_labels_without_any_quantised_tensor(tmp_path):
    def strip(tensors):
        for name in [n for n in tensors if "_proj." in n]:
            del tensors[name]

    with pytest.raises(EdgeError, match="no file holds a qweight"):
        one_layer(tmp_path, change=strip)


def test_a_tensor_both_quantised_and_not(tmp_path):
    def add(tensors):
        tensors[Q] = np.ones((256, 256), np.float16)

    with pytest.raises(EdgeError, match="both quantised and not"):
        one_layer(tmp_path, change=add)


def test_a_tensor_in_two_files(tmp_path):
    write_gptq(tmp_path, ONE_LAYER, Settings())
    (tmp_path / "other.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(EdgeError, match=r"is in other\.safetensors too"):
        open_gptq(tmp_path)


def test_whole_numbers_where_weights_belong(tmp_path):
    def spoil(tensors):
        tensors["model.norm.weight"] = np.ones(256, np.int32)

    _, weights = one_layer(tmp_path, change=spoil)
    with pytest.raises(EdgeError, match=r"model\.norm\.weight holds whole numbers"):
        weights.read("model.norm.weight")


ODD_VALUES = {"f": (np.nan, np.inf, -1.0, 0.0, 6e-8, 65504.0), "i": (-1, 0, 1, 2, 2**31 - 1)}


def mutate(array, data):
    """A cut, a grown, a retyped, a reshaped or a spoilt array."""
    kind = data.draw(st.sampled_from(("value", "cut", "double", "type", "flat", "turn")))
    if kind == "value":
        array = array.copy()
        array.flat[data.draw(st.integers(0, array.size - 1))] = data.draw(
            st.sampled_from(ODD_VALUES[array.dtype.kind])
        )
    elif kind == "cut":
        array = array[: data.draw(st.integers(0, len(array)))]
    elif kind == "type":
        types = (np.int32, np.int64, np.float16, np.float32, np.float64)
        with np.errstate(all="ignore"):
            array = array.astype(data.draw(st.sampled_from(types)))
    else:
        array = {
            "double": lambda a: np.concatenate([a, a]),
            "flat": np.ravel,
            "turn": np.transpose,
        }[kind](array)
    return np.ascontiguousarray(array)


@settings(max_examples=150)
@given(st.data())
def test_mutated_tensors_are_a_sentence_or_weights(tmp_path_factory, data):
    """Whatever is wrong with arrays, the answer is an EdgeError or tensors of stated shapes."""
    path = tmp_path_factory.mktemp("fuzz")
    how = Settings(data.draw(st.sampled_from(fmt.BITS)), 32, sym=data.draw(st.booleans()))

    def spoil(tensors):
        names = sorted(name for name in tensors if LAYER in name)
        for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
            if data.draw(st.integers(0, 9)) == 0:
                tensors.pop(name, None)
            elif name in tensors and tensors[name].size:
                tensors[name] = mutate(tensors[name], data)

    try:
        write_gptq(path, SMALL, how, change=spoil)
        weights = open_gptq(path)
        for name, shape in weights.shapes.items():
            assert weights.read(name).shape == shape
            if packing := weights.packing(name):
                packed = weights.read_packed(name)
                assert packed.codes.shape == (shape[0], shape[1] * packing.bits // 32)
                assert packed.scales.shape == (shape[0], shape[1] // packing.group_size)
                assert np.isfinite(packed.biases).all()
    except EdgeError as error:
        assert LAYER in str(error)


def test_the_packer_is_whole():
    """Every matrix of a network is quantised, so nothing above passes for want of one."""
    matrices, _ = network_tensors(ONE_LAYER)
    assert {f"{stem}.weight" for stem in matrices} == {Q, K, V, O, GATE, UP, DOWN}

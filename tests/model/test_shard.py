"""A network over several processes against the same network in one, and how tensors are split."""

import os

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from edge.errors import EdgeError
from edge.formats.folder import read_weights
from edge.model.config import ModelConfig
from edge.model.load import load_model
from edge.model.memory import required_bytes
from edge.model.shard import Part, check_split, read_part
from edge.model.tensors import input_order_shapes
from tests.support import tiny
from tests.support.ranks import pair
from tests.support.tiny import write_checkpoint, write_quantised

# Four ranks with groups of 32: a rank has 32 of the heads' and 32 of the inner inputs.
WIDE = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4}
STABLELM, LLAMA = tiny.PLAIN | WIDE, tiny.LLAMA | WIDE
SWITCHES = {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True}
INT4 = {"group_size": 32, "bits": 4}
INT8 = {"group_size": 32, "bits": 8}
TOLERANCE = 1e-4
# Ranks wait for one another in loops: four on two cores take a minute.
RANKS = [int(size) for size in os.environ.get("EDGE_TEST_RANKS", "2").split(",")]


def ordered(path, raw):
    """An artefact as act-order GPTQ gives it: 4 bits, and permuted inputs."""
    shapes = input_order_shapes(ModelConfig.from_dict(raw))
    random = np.random.RandomState(2)
    orders = {n: random.permutation(w).astype(np.int32) for n, (w,) in shapes.items()}
    return write_quantised(path, raw, INT4, orders)


ARTEFACTS = {
    "stablelm": lambda path: write_checkpoint(path, STABLELM | SWITCHES),
    "stablelm-tied": lambda path: write_checkpoint(path, STABLELM | {"tie_word_embeddings": True}),
    "stablelm-int4": lambda path: write_quantised(path, STABLELM | SWITCHES, INT4),
    "stablelm-act-order": lambda path: ordered(path, STABLELM),
    "llama-bias": lambda path: write_checkpoint(
        path, LLAMA | {"attention_bias": True, "mlp_bias": True}
    ),
    "llama-tied-int8": lambda path: write_quantised(
        path, LLAMA | {"tie_word_embeddings": True}, INT8
    ),
    "llama-act-order": lambda path: ordered(path, LLAMA),
}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    """A folder with all ARTEFACTS."""
    folder = tmp_path_factory.mktemp("sharded")
    for name, make in ARTEFACTS.items():
        make(folder / name)
    return folder


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ARTEFACTS)
def test_parts_make_up_the_whole(name, size, artefacts):
    whole = dict(tree_flatten(load_model(artefacts / name, mx.float32, fuse=False).parameters()))
    parts = [
        dict(
            tree_flatten(
                load_model(
                    artefacts / name, mx.float32, fuse=False, part=Part(rank, size)
                ).parameters()
            )
        )
        for rank in range(size)
    ]
    for key, array in whole.items():
        pieces = [np.array(part[key]) for part in parts]
        if key.endswith(("o_proj.bias", "down_proj.bias")):
            np.testing.assert_array_equal(sum(pieces), np.array(array))
        elif key.rpartition(".")[0].endswith("layernorm") and pieces[0].ndim == 1:
            for piece in pieces:
                np.testing.assert_array_equal(piece, np.array(array))
        elif key != "model.norm.weight" and key != "model.norm.bias":
            axis = int("o_proj" in key or "down_proj" in key)
            np.testing.assert_array_equal(np.concatenate(pieces, axis), np.array(array))
            assert pieces[0].size * size == array.size


def test_ranks_compute_the_logits_and_the_text_of_one_process(artefacts):
    for size in RANKS:
        lead, *others = pair("sharded.py", artefacts, *ARTEFACTS, count=size, limit_s=100.0 * size)
        assert [one["rank"] for one in others] == list(range(1, size))
        lead = lead["artefacts"]
        assert lead.keys() == ARTEFACTS.keys()
        for name, one in lead.items():
            plain, in_8_bits = one["differences"][:80], one["differences"][80:]
            assert max(plain) < TOLERANCE, (name, size)
            # Rounding can move a key or value to the next of its 256 steps.
            assert np.median(in_8_bits) < TOLERANCE and max(in_8_bits) < 0.01, (name, size)
            assert one["texts"] == one["expected"], (name, size)


@pytest.mark.parametrize(
    ("raw", "quantization", "size", "words"),
    [
        (STABLELM, None, 3, r"over 3 devices: it has 4 attention heads; use 2 or 4\."),
        (STABLELM, INT4, 8, r"over 8 devices: it has 4 attention heads; use 2 or 4\."),
        (STABLELM, {"group_size": 128}, 2, r"a part of 64 inputs .* groups of 128; run it on one"),
        (LLAMA | {"num_key_value_heads": 2}, INT4, 4, r"2 key and value heads; use 2\."),
        (LLAMA | {"vocab_size": 161}, None, 2, r"161 tokens of the vocabulary; run it on one\."),
    ],
)
def test_numbers_that_do_not_divide_are_refused(raw, quantization, size, words):
    with pytest.raises(EdgeError, match=words):
        check_split(ModelConfig.from_dict(raw), quantization, size, "m")


def test_the_published_shapes_fit_two_and_four(tmp_path):
    from edge.convert.sources.published import SHAPES

    for name, config in SHAPES.items():
        for size in (2, 4):
            check_split(config, {"group_size": 64}, size, name)


def test_a_matrix_with_groups_of_its_own_is_refused_too(tmp_path):
    own = {**INT4, "model.layers.0.mlp.down_proj": {"group_size": 128, "bits": 4}}
    path = write_quantised(tmp_path / "m", STABLELM, own)
    with pytest.raises(EdgeError, match=r"not what config\.json describes .*down_proj"):
        load_model(path, part=Part(0, 2))


@pytest.mark.parametrize("size", [2, 4])
def test_the_memory_of_a_part_is_counted(size, artefacts):
    for name in ARTEFACTS:
        model = load_model(artefacts / name, mx.float32, part=Part(size - 1, size))
        held = sum(a.nbytes for _, a in tree_flatten(model.parameters()))
        config = model.config
        need = required_bytes(artefacts / name, config, mx.float32, 0, devices=size)
        assert held <= need.weights_bytes <= 1.1 * held


def test_only_the_own_bytes_are_read(artefacts, monkeypatch):
    """Bytes read of the split tensors are a rank's share."""
    from edge.model import shard

    read = {}
    real = shard._read

    def counted(tensor, part):
        array = real(tensor, part)
        read[tensor.name] = array.nbytes / tensor.data_bytes
        return array

    monkeypatch.setattr(shard, "_read", counted)
    read_part(read_weights(artefacts / "llama-tied-int8"), Part(1, 4), mx.float32)
    shares = {n: s for n, s in read.items() if "norm" not in n}
    assert set(shares.values()) == {0.25}

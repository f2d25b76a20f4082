"""An MLX directory as a source, against MLX and mlx-lm."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.convert import convert as mlx_lm_convert

from edge.convert.checkpoint import open_checkpoint
from edge.convert.sources.weights import Packing
from edge.errors import EdgeError
from tests.support.conversions import check, edge_logits, make, relative
from tests.support.tiny import CONFIGS, edit_tensors, write_checkpoint

RAW = {**CONFIGS["stable-code"], "hidden_size": 256, "intermediate_size": 320}
WEIGHTS = "model.safetensors"
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def int4(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlx")
    return make(write_checkpoint(folder / "tiny", RAW), folder / "out", "mlx-int4")[0].path


@pytest.mark.parametrize(
    ("bits", "group_size"), [(2, 32), (3, 64), (4, 32), (4, 128), (5, 64), (6, 32), (8, 64)]
)
def test_every_matrix_is_read_as_mlx_reads_it(tmp_path, bits, group_size):
    source = write_checkpoint(tmp_path / "tiny", RAW)
    (made,) = make(source, tmp_path / "out", f"mlx-int{bits}", group_size=group_size)
    weights = open_checkpoint(str(made.path)).weights
    stored = mx.load(str(made.path / WEIGHTS))
    for name, shape in weights.shapes.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.scales" not in stored:
            assert weights.packing(name) is None
            assert np.array_equal(weights.read(name), np.array(stored[name]))
            continue
        assert weights.packing(name) == Packing(bits, group_size)
        parts = (stored[f"{stem}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
        expected = np.array(mx.dequantize(stored[name], *parts, group_size=group_size, bits=bits))
        whole = weights.read(name)
        assert (whole.dtype, whole.shape) == (np.float32, shape)
        assert np.array_equal(whole, expected)
        assert np.array_equal(weights.read(name, 3, 9), expected[3:9])
    assert weights.quantised


def test_int4_to_int4_is_an_exact_copy(int4, tmp_path):
    (made,) = make(int4, tmp_path / "out", "mlx-int4")
    assert (made.path / WEIGHTS).read_bytes() == (int4 / WEIGHTS).read_bytes()
    assert any("the source's own" in note for note in made.notes)
    assert not any("rounded again" in note for note in made.notes)
    ours, source = (json.loads((p / "config.json").read_text()) for p in (made.path, int4))
    assert ours == source


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_artefacts_of_mlx_lm_are_read_and_kept_exactly(tmp_path, dtype):
    source, peer = write_checkpoint(tmp_path / "tiny", RAW), tmp_path / "peer"
    mlx_lm_convert(str(source), str(peer), quantize=True, q_bits=4, q_group_size=64, dtype=dtype)
    for made in make(peer, tmp_path / "out", "mlx-int4", "mlx-int8", "gguf-f16"):
        assert check(made.path, peer).problems == ()
    assert relative(edge_logits(tmp_path / "out" / "mlx-int8"), edge_logits(peer)) < 0.1
    kept, original = (
        open_checkpoint(str(path)).weights for path in (tmp_path / "out" / "mlx-int4", peer)
    )
    for name in ("model.layers.0.mlp.gate_proj.weight", "lm_head.weight"):
        assert np.array_equal(kept.read(name), original.read(name))


def opened(int4, tmp_path, change):
    path = shutil.copytree(int4, tmp_path / "changed")
    edit_tensors(path, change)
    return open_checkpoint(str(path)).weights


def test_scales_that_float16_cannot_hold_are_not_packed(int4, tmp_path):
    def enlarge(tensors):
        tensors[f"{Q}.scales"] = np.full_like(tensors[f"{Q}.scales"], 1e6, dtype=np.float32)
        tensors[f"{Q}.biases"] = tensors[f"{Q}.biases"].astype(np.float32)

    weights = opened(int4, tmp_path, enlarge)
    assert weights.packing(f"{Q}.weight") is None
    assert "float16" in weights.unpackable[f"{Q}.weight"]
    assert weights.read(f"{Q}.weight").max() > 1e6


@pytest.mark.parametrize(
    ("parts", "change"),
    [
        (["biases"], lambda a: a[:, :2]),
        (["weight"], lambda a: a[:-1]),
        (["weight"], lambda a: np.tile(a, (1, 4))),  # 16 bits
        (["scales", "biases"], lambda a: a[:, :0]),
        (["scales", "biases"], lambda a: a[:, :1]),  # groups of 256
    ],
)
def test_shapes_that_do_not_fit_are_refused(int4, tmp_path, parts, change):
    def change_parts(tensors):
        tensors |= {f"{Q}.{part}": change(tensors[f"{Q}.{part}"]).copy() for part in parts}

    with pytest.raises(EdgeError, match=r"q_proj\.weight"):
        opened(int4, tmp_path, change_parts)

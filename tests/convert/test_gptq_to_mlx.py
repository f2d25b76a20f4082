"""GPTQ checkpoints through the converter, against the definition's own matrices."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge.bench.engines.mlx import open_mlx_lm
from edge.convert.artefacts.manifest import read_manifest
from edge.convert.checkpoint import open_checkpoint
from edge.errors import EdgeError
from edge.model.load import has_input_orders
from tests.support.conversions import (
    check,
    edge_logits,
    llama_logits,
    make,
    mlx_lm_logits,
    relative,
)
from tests.support.gptq_packer import LLAMA, STABLELM, Settings, write_gptq

WEIGHTS = "model.safetensors"
V_OF_32 = {"v_proj": {"group_size": 32, "act_order": False}}


def truth(folder, raw, matrices, ordinary):
    """Logits of a float32 network made of the definition's matrices."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = {name: array.astype(np.float32) for name, array in ordinary.items()}
    for stem, matrix in matrices.items():
        tensors[f"{stem}.weight"] = np.ascontiguousarray(matrix.dense().astype(np.float32))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return edge_logits(folder)


def converted(tmp_path, raw, how, name, options=None, **writing):
    """The artefact and the logits it should have."""
    matrices, ordinary = write_gptq(tmp_path / "m", raw, how, **writing)
    (made,) = make(tmp_path / "m", tmp_path / "out", name, **(options or {}))
    return made, truth(tmp_path / "truth", raw, matrices, ordinary)


@pytest.mark.parametrize(
    ("raw", "how"),
    [
        (STABLELM, Settings(4, 128)),
        (STABLELM, Settings(8, -1)),
        (STABLELM, Settings(3, 32, act_order=False)),
        (STABLELM, Settings(4, 64, overrides={"o_proj": {"bits": 8}})),
        (LLAMA, Settings(8, 128)),
    ],
    ids=str,
)
def test_values_are_kept(tmp_path, raw, how):
    inside, name = how.bits == 4, f"mlx-int{how.bits}"
    made, wanted = converted(tmp_path, raw, how, name, zero_biases=True, inside_config=inside)
    source = open_checkpoint(str(tmp_path / "m"))
    assert np.abs(edge_logits(made.path) - wanted).max() <= 1e-4
    assert "14 of 14 quantised matrices keep the source's own" in made.notes[0]
    ordered = how.act_order and how.group_size != -1
    assert has_input_orders(made.path) == ordered
    assert any("act-order" in note and "--requantise" in note for note in made.notes) == ordered
    assert len(made.notes) == 1 + ordered
    if ordered:  # nonsense if they were passed over
        with pytest.raises(ValueError, match="not in model"):
            mlx_lm_logits(made.path)
        with pytest.raises(EdgeError, match=r"act-order .* mlx-lm .*--requantise"):
            open_mlx_lm(made.path)
    else:
        assert np.abs(mlx_lm_logits(made.path) - wanted).max() <= 1e-4
    manifest = read_manifest(made.path)
    assert manifest.exact
    assert manifest.notes == made.notes
    assert manifest.recipe["group_size"] == min(how.group_size % 2**32, 128)
    config = json.loads((made.path / "config.json").read_text())
    assert config["quantization_config"] == config["quantization"]  # nothing of GPTQ's is left
    found = check(made.path, tmp_path / "m")
    assert not found.problems
    assert found.compared_tensors == len(source.weights.shapes)
    assert found.worst[0].relative == 0


@pytest.mark.parametrize(
    ("raw", "how", "name", "options", "limit", "why"),
    [
        (LLAMA, Settings(4, 128), "mlx-int4", {"requantise": True}, 0.5, None),
        (STABLELM, Settings(4, 128), "mlx-int4", {"group_size": 32}, 0.5, None),
        (STABLELM, Settings(4, 128), "mlx-int8", {}, 0.02, None),
        (STABLELM, Settings(4, 128), "mlx-fp16", {}, 1e-3, None),
        (STABLELM, Settings(4, 128), "gguf-f16", {}, 1e-3, None),
        (STABLELM, Settings(4, 128), "gguf-q8_0", {}, 0.05, None),
        (STABLELM, Settings(4, 160, act_order=False), "mlx-int4", {}, 0.5, "different sizes"),
        # One of seven could be kept.
        (STABLELM, Settings(4, 16, overrides=V_OF_32), "mlx-int4", {}, 0.5, "groups of 16"),
    ],
)
def test_rounding_again_is_close_and_says_its_loss(tmp_path, raw, how, name, options, limit, why):
    made, wanted = converted(tmp_path, raw, how, name, options)
    manifest = read_manifest(made.path)
    assert any("rounded again: relative error" in note for note in manifest.notes)
    assert not why or any("cannot be kept" in note and why in note for note in made.notes)
    assert not manifest.exact
    if name.startswith("gguf"):
        assert relative(llama_logits(made.path), wanted) < limit
        return
    ours = edge_logits(made.path)
    assert 1e-6 < relative(ours, wanted) < limit
    assert np.abs(mlx_lm_logits(made.path) - ours).max() <= 1e-4
    assert not check(made.path, tmp_path / "m").problems


def test_matrices_that_mlx_cannot_hold_stay_in_float16_and_are_named(tmp_path):
    how = Settings(overrides={"k_proj": {"group_size": 64}})
    made, wanted = converted(tmp_path, STABLELM, how, "mlx-int4")
    (note,) = [note for note in made.notes if "in float16" in note]
    assert re.search("q_proj.weight and 5 more: .* share an order", note)
    for name, array in load_file(made.path / WEIGHTS).items():
        if name.endswith("_proj.weight"):
            is_float = name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
            assert array.dtype == (np.float16 if is_float else np.uint32)
    assert relative(edge_logits(made.path), wanted) < 1e-3
    assert not check(made.path, tmp_path / "m").problems


@pytest.mark.parametrize(("head", "plain"), [(True, None), (False, "o_proj")])
def test_a_quantised_head_and_an_unquantised_matrix_are_read(tmp_path, head, plain):
    how = Settings(4, 64, act_order=False)
    made, wanted = converted(tmp_path, STABLELM, how, "mlx-int4", head=head, plain=plain)
    source, tensors = open_checkpoint(str(tmp_path / "m")), load_file(made.path / WEIGHTS)
    assert ("lm_head.scales" in tensors) == head
    name = "model.layers.0.self_attn.o_proj"
    assert (f"{name}.qweight" in load_file(tmp_path / "m" / WEIGHTS)) == (plain is None)
    assert source.weights.shapes[f"{name}.weight"] == (256, 256)
    assert relative(edge_logits(made.path), wanted) < (0.2 if plain else 1e-4)
    assert not check(made.path, tmp_path / "m").problems

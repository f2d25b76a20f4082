"""GGUF files and GPTQ checkpoints through the converter.

GGUF files are compared with what llama.cpp computes, GPTQ checkpoints with the definition's own
matrices.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge.bench.engines.mlx_lm import open_peer
from edge.convert.artefacts.manifest import Corrections, read_manifest
from edge.convert.checkpoint import open_checkpoint
from edge.convert.fix_gguf import ROPE_BASE_KEY
from edge.convert.sources.gguf import open_gguf
from edge.errors import EdgeError
from edge.model.load import has_input_orders
from tests.support.conversions import (
    check,
    edge_logits,
    llama_logits,
    make,
    mlx_lm_logits,
    relative,
    widened,
)
from tests.support.foreign_gguf import rewritten, write_tiny
from tests.support.gptq_packer import LLAMA, STABLELM, Settings, write_gptq

KINDS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q4_k_m", "q2_k", "bf16")
# Bits of the types that are kept, and whether the head has another type (Q6_K).
KEPT = {"q8_0": (8, False), "q5_1": (5, True), "q5_0": (5, True), "q4_1": (4, True)}
KEPT["q4_0"] = (4, True)
FEW_IDS = np.random.RandomState(1).randint(0, 10, 40).tolist()
WEIGHTS = "model.safetensors"
V_OF_32 = {"v_proj": {"group_size": 32, "act_order": False}}


@pytest.fixture(scope="module")
def files(demo_out, tmp_path_factory) -> dict[str, Path]:
    """The demo in every type, by the type's name."""
    out = tmp_path_factory.mktemp("files")
    made = make("demo", out, *(f"gguf-{kind}" for kind in KINDS))
    paths = {kind: artefact.path for kind, artefact in zip(KINDS, made, strict=True)}
    return paths | {kind: demo_out / f"gguf-{kind}.gguf" for kind in ("f32", "f16", "q6_k")}


def converted(tmp_path, raw, how, name, options=None, **writing):
    """An artefact of a GPTQ checkpoint and the logits it should have."""
    matrices, ordinary = write_gptq(tmp_path / "m", raw, how, **writing)
    (made,) = make(tmp_path / "m", tmp_path / "out", name, **(options or {}))
    folder = tmp_path / "truth"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = {name: array.astype(np.float32) for name, array in ordinary.items()}
    for stem, matrix in matrices.items():
        tensors[f"{stem}.weight"] = np.ascontiguousarray(matrix.dense().astype(np.float32))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return made, edge_logits(folder)


def expect_kept(made, source, note):
    """The manifest and the verification say that the source's own values were kept."""
    assert note in made.notes[0]
    manifest, found = read_manifest(made.path), check(made.path, source)
    assert (manifest.exact, manifest.notes, found.problems) == (True, made.notes, ())
    assert found.compared_tensors == len(open_checkpoint(str(source)).weights.shapes)


@pytest.mark.parametrize("kind", KEPT)
def test_affine_gguf_types_keep_their_values(files, tmp_path, kind):
    bits, other_head = KEPT[kind]
    (made,) = make(files[kind], tmp_path, f"mlx-int{bits}")
    source, kept = open_gguf(files[kind]).weights, open_checkpoint(str(made.path)).weights
    for name in source.shapes:
        assert np.array_equal(kept.read(name), source.read(name).astype(kept.read(name).dtype))
    expect_kept(made, files[kind], f"{30 - other_head} of 30 quantised matrices keep")
    told = [n for n in made.notes if "float16" in n and "lm_head.weight: MLX has no form" in n]
    assert len(told) == other_head
    assert not any("rounded again" in note for note in made.notes)
    truth, ours = llama_logits(widened(files[kind], tmp_path / "f32.gguf")), edge_logits(made.path)
    # Rounding the head to float16 moves logits of up to 20 by half a float16 step: measured 0.007.
    assert np.abs(ours - truth).max() <= (0.015 if other_head else 5e-4)
    assert np.abs(mlx_lm_logits(made.path) - ours).max() <= 1e-4


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
def test_gptq_values_are_kept(tmp_path, raw, how):
    inside, name = how.bits == 4, f"mlx-int{how.bits}"
    made, wanted = converted(tmp_path, raw, how, name, zero_biases=True, inside_config=inside)
    expect_kept(made, tmp_path / "m", "14 of 14 quantised matrices keep the source's own")
    assert np.abs(edge_logits(made.path) - wanted).max() <= 1e-4
    ordered = how.act_order and how.group_size != -1
    assert has_input_orders(made.path) == ordered
    assert any("act-order" in note and "--requantise" in note for note in made.notes) == ordered
    if ordered:  # mlx-lm would compute nonsense if it did not refuse the orders
        with pytest.raises(ValueError, match="not in model"):
            mlx_lm_logits(made.path)
        with pytest.raises(EdgeError, match=r"act-order .* mlx-lm .*--requantise"):
            open_peer(made.path)
    else:
        assert np.abs(mlx_lm_logits(made.path) - wanted).max() <= 1e-4
    assert read_manifest(made.path).recipe["group_size"] == min(how.group_size % 2**32, 128)
    config = json.loads((made.path / "config.json").read_text())
    assert config["quantization_config"] == config["quantization"]  # nothing of GPTQ's is left
    assert check(made.path, tmp_path / "m").worst[0].relative == 0


def expect_rounded_again(made, source, wanted, limit, why):
    """Close to the source, with the loss in its notes."""
    assert not read_manifest(made.path).exact
    assert any("rounded again: relative error" in note for note in made.notes)
    assert not why or any("cannot be kept" in note and why in note for note in made.notes)
    if made.recipe.is_mlx:
        ours = edge_logits(made.path)
        assert np.abs(mlx_lm_logits(made.path) - ours).max() <= 1e-4
    else:
        ours = llama_logits(made.path)
    assert 1e-6 < relative(ours, wanted) < limit
    assert not check(made.path, source).problems


@pytest.mark.parametrize(
    ("kind", "name", "limit", "why", "options"),
    [
        ("q4_k_m", "mlx-fp16", 1e-3, None, {}),
        ("q4_k_m", "mlx-int4", 0.4, "no form for Q", {}),
        ("q2_k", "mlx-int8", 0.04, "no form for Q", {}),
        ("q4_0", "mlx-int4", 0.4, None, {"requantise": True}),
        ("q4_k_m", "gguf-q8_0", 0.05, None, {}),
    ],
)
def test_rounding_gguf_again_is_close(files, tmp_path, kind, name, limit, why, options):
    (made,) = make(files[kind], tmp_path, name, **options)
    truth = llama_logits(widened(files[kind], tmp_path / "f32.gguf"))
    expect_rounded_again(made, files[kind], truth, limit, why)


@pytest.mark.parametrize(
    ("raw", "how", "name", "options", "limit", "why"),
    [
        (LLAMA, Settings(4, 128), "mlx-int4", {"requantise": True}, 0.5, None),
        (STABLELM, Settings(4, 128), "mlx-int4", {"group_size": 32}, 0.5, None),
        (STABLELM, Settings(4, 128), "mlx-int8", {}, 0.02, None),
        (STABLELM, Settings(4, 128), "gguf-f16", {}, 1e-3, None),
        (STABLELM, Settings(4, 160, act_order=False), "mlx-int4", {}, 0.5, "different sizes"),
        # One of seven could be kept.
        (STABLELM, Settings(4, 16, overrides=V_OF_32), "mlx-int4", {}, 0.5, "groups of 16"),
    ],
)
def test_rounding_gptq_again_is_close(tmp_path, raw, how, name, options, limit, why):
    made, wanted = converted(tmp_path, raw, how, name, options)
    expect_rounded_again(made, tmp_path / "m", wanted, limit, why)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_a_float_gguf_file_is_not_a_quantised_source(files, demo_out, tmp_path, kind):
    assert open_checkpoint(str(files[kind])).warnings == ()
    made = make(files[kind], tmp_path, "mlx-fp16", "mlx-int4")
    assert all(artefact.notes == () for artefact in made)
    truth = llama_logits(widened(files[kind], tmp_path / "f32.gguf"))
    assert np.abs(edge_logits(made[0].path) - truth).max() <= 0.03
    if kind == "f16":  # the demo to GGUF to MLX is the demo to MLX
        ours, theirs = (path / WEIGHTS for path in (made[1].path, demo_out / "mlx-int4"))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("base", [None, 20_000.0])
def test_both_engines_agree_on_a_foreign_file_and_a_given_base_is_written(tmp_path, base):
    """One layer of mixed types and no rotary base, which llama.cpp takes as 10000."""
    source = write_tiny(tmp_path / "x.gguf")
    made = make(source, tmp_path, "mlx-fp16", "gguf-f32", corrections=Corrections(rope_theta=base))
    same = rewritten(source, tmp_path / "y.gguf", {ROPE_BASE_KEY: base}) if base else source
    truth = llama_logits(widened(same, tmp_path / "f32.gguf"), FEW_IDS)
    for found in (edge_logits(made[0].path, FEW_IDS), llama_logits(made[1].path, FEW_IDS)):
        assert relative(found, truth) < 2e-3
    if base:  # which the logits depend on
        assert relative(llama_logits(widened(source, tmp_path / "a.gguf"), FEW_IDS), truth) > 0.01


@pytest.mark.parametrize(("head", "plain"), [(True, None), (False, "o_proj")])
def test_a_quantised_head_and_an_unquantised_matrix_are_read(tmp_path, head, plain):
    how = Settings(4, 64, act_order=False)
    made, wanted = converted(tmp_path, STABLELM, how, "mlx-int4", head=head, plain=plain)
    assert ("lm_head.scales" in load_file(made.path / WEIGHTS)) == head
    stored = load_file(tmp_path / "m" / WEIGHTS)
    assert ("model.layers.0.self_attn.o_proj.qweight" in stored) == (plain is None)
    assert relative(edge_logits(made.path), wanted) < (0.2 if plain else 1e-4)
    assert not check(made.path, tmp_path / "m").problems

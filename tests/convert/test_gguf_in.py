"""GGUF files through the converter, with llama.cpp beside them."""

from pathlib import Path

import numpy as np
import pytest

from edge.convert.artefacts.manifest import read_manifest
from edge.convert.checkpoint import Corrections, open_checkpoint
from edge.convert.sources.gguf import ROPE_BASE_KEY, open_gguf
from edge.errors import EdgeError
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

KINDS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q4_k_m", "q2_k", "bf16")
# Which keeps what it has: the bits, and whether the head is another type (Q6_K).
KEPT = {"q8_0": (8, False), "q5_1": (5, True), "q5_0": (5, True), "q4_1": (4, True)}
KEPT["q4_0"] = (4, True)
FEW_IDS = np.random.RandomState(1).randint(0, 10, 40).tolist()


@pytest.fixture(scope="module")
def files(demo_out, tmp_path_factory) -> dict[str, Path]:
    """The demo in every type, by the type's name."""
    out = tmp_path_factory.mktemp("files")
    made = make("demo", out, *(f"gguf-{kind}" for kind in KINDS))
    paths = {kind: artefact.path for kind, artefact in zip(KINDS, made, strict=True)}
    return paths | {kind: demo_out / f"gguf-{kind}.gguf" for kind in ("f32", "f16", "q6_k")}


@pytest.mark.parametrize("kind", KEPT)
def test_affine_types_keep_their_values(files, tmp_path, kind):
    bits, other_head = KEPT[kind]
    (made,) = make(files[kind], tmp_path, f"mlx-int{bits}")
    source, kept = open_gguf(files[kind]).weights, open_checkpoint(str(made.path)).weights
    for name in source.shapes:
        assert np.array_equal(kept.read(name), source.read(name).astype(kept.read(name).dtype))
    check_manifest(made, other_head)
    truth, ours = llama_logits(widened(files[kind], tmp_path / "f32.gguf")), edge_logits(made.path)
    # Rounding the head to float16 moves logits of up to 20 by half a float16 step: measured 0.007.
    assert np.abs(ours - truth).max() <= (0.015 if other_head else 5e-4)
    assert np.abs(mlx_lm_logits(made.path) - ours).max() <= 1e-4
    found = check(made.path, files[kind])
    assert not found.problems
    assert found.compared_tensors == len(source.shapes)


def check_manifest(made, other_head):
    assert f"{30 - other_head} of 30 quantised matrices keep" in made.notes[0]
    told = [n for n in made.notes if "float16" in n and "lm_head.weight: MLX has no form" in n]
    assert len(told) == other_head
    assert not any("rounded again" in note for note in made.notes)
    manifest = read_manifest(made.path)
    assert manifest.exact
    assert manifest.notes == made.notes


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_floats_are_no_quantised_source(files, demo_out, tmp_path, kind):
    checkpoint = open_checkpoint(str(files[kind]))
    assert checkpoint.warnings == ()
    made = make(files[kind], tmp_path, "mlx-fp16", "mlx-int4")
    assert all(artefact.notes == () for artefact in made)
    truth = llama_logits(widened(files[kind], tmp_path / "f32.gguf"))
    assert np.abs(edge_logits(made[0].path) - truth).max() <= 0.03
    with pytest.raises(EdgeError, match=r"--requantise is for quantised sources, and gguf-"):
        make(files[kind], tmp_path, "mlx-int4", requantise=True)
    if kind == "f16":  # the demo to GGUF to MLX is the demo to MLX
        ours, theirs = (p / "model.safetensors" for p in (made[1].path, demo_out / "mlx-int4"))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("kind", "name", "limit", "why", "options"),
    [
        ("q4_k_m", "mlx-fp16", 1e-3, False, {}),
        ("q4_k_m", "mlx-int4", 0.4, True, {}),
        ("q2_k", "mlx-int8", 0.04, True, {}),
        ("q8_0", "mlx-int4", 0.4, False, {}),
        ("q4_0", "mlx-int4", 0.4, False, {"requantise": True}),
        ("q4_k_m", "gguf-q8_0", 0.05, False, {}),
    ],
)
def test_rounding_again_is_close_and_says_its_loss(
    files, tmp_path, kind, name, limit, why, options
):
    (made,) = make(files[kind], tmp_path, name, **options)
    manifest = read_manifest(made.path)
    assert not manifest.exact
    assert any("rounded again: relative error" in note for note in manifest.notes)
    assert any("cannot be kept" in note and "no form for Q" in note for note in made.notes) == why
    truth = llama_logits(widened(files[kind], tmp_path / "f32.gguf"))
    logits = llama_logits if name.startswith("gguf") else edge_logits
    assert relative(logits(made.path), truth) < limit
    assert not check(made.path, files[kind]).problems


@pytest.mark.parametrize("base", [None, 20_000.0])
def test_both_engines_agree_on_a_foreign_file_and_a_given_base_is_written(tmp_path, base):
    """One layer of mixed types and no rotary base, which llama.cpp takes as 10000."""
    source = write_tiny(tmp_path / "x.gguf")
    made = make(source, tmp_path, "mlx-fp16", "gguf-f32", corrections=Corrections(rope_theta=base))
    same = rewritten(source, tmp_path / "y.gguf", {ROPE_BASE_KEY: base}) if base else source
    truth = llama_logits(widened(same, tmp_path / "f32.gguf"), FEW_IDS)
    for found in (edge_logits(made[0].path, FEW_IDS), llama_logits(made[1].path, FEW_IDS)):
        assert relative(found, truth) < 2e-3
    assert open_checkpoint(str(made[1].path)).config.rope_theta == (base or 10_000.0)
    if base:  # which the logits depend on
        assert relative(llama_logits(widened(source, tmp_path / "a.gguf"), FEW_IDS), truth) > 0.01

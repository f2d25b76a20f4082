"""GGUF files through the converter, with llama.cpp beside them."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_tokenizer
from safetensors.numpy import load_file

from edge.convert.artefacts.manifest import read_manifest
from edge.convert.artefacts.recipes import MENDED
from edge.convert.checkpoint import Corrections, open_checkpoint
from edge.convert.sources.find import DEMO_PATH
from edge.convert.sources.gguf import open_gguf
from edge.convert.verify import verify
from edge.errors import EdgeError
from tests.support.conversions import (
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
STABLE_CODE_BASE = 1_000_000.0


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
    tensors, source = load_file(made.path / "model.safetensors"), open_gguf(files[kind]).weights
    for name, shape in source.shapes.items():
        parts = [tensors.get(name.replace(".weight", part)) for part in (".scales", ".biases")]
        if len(shape) == 1 or (other_head and name == "lm_head.weight"):
            assert np.array_equal(tensors[name], source.read(name).astype(np.float16))
            continue
        wide = (mx.array(part.astype(np.float32)) for part in parts)
        dense = mx.dequantize(mx.array(tensors[name]), *wide, group_size=32, bits=bits)
        assert np.array_equal(np.array(dense), source.read(name)), name
    check_manifest(made, other_head)
    truth, ours = llama_logits(widened(files[kind], tmp_path / "f32.gguf")), edge_logits(made.path)
    # Rounding the head to float16 moves logits of up to 20 by half a float16 step: measured 0.007.
    assert np.abs(ours - truth).max() <= (0.015 if other_head else 5e-4)
    assert np.abs(mlx_lm_logits(made.path) - ours).max() <= 1e-4
    found = verify(made.path, open_checkpoint(str(files[kind])), lambda _: None)
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
        ("q6_k", "mlx-int6", 0.08, True, {}),
        ("q2_k", "mlx-int8", 0.04, True, {}),
        ("q8_0", "mlx-int4", 0.4, False, {}),
        ("q4_0", "mlx-int8", 0.04, False, {}),
        ("q4_0", "mlx-int4", 0.4, False, {"requantise": True}),
        ("q4_k_m", "gguf-f16", 2e-3, False, {}),
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
    found = verify(made.path, open_checkpoint(str(files[kind])), lambda _: None)
    assert not found.problems


def test_tokenizer_and_chat_template_travel(files, tmp_path, held_out_text):
    (made,) = make(files["q4_0"], tmp_path, "mlx-int4")
    ours, demo = load_tokenizer(made.path), load_tokenizer(DEMO_PATH)
    special = "<fim_prefix>a<fim_suffix>b<fim_middle><|im_end|>\n"
    for text in (held_out_text, special, "café\t\t  x = 'ﬁ'\r\n"):
        assert ours.encode(text) == demo.encode(text)
        assert ours.decode(demo.encode(text)) == demo.decode(demo.encode(text))
    chat = {"conversation": [{"role": "user", "content": "add"}], "tokenize": False}
    assert ours.apply_chat_template(**chat) == demo.apply_chat_template(**chat)
    assert ours.eos_token_ids == demo.eos_token_ids


# --- the rotary base that llama.cpp's converter leaves out


@pytest.fixture(scope="module")
def foreign(files, tmp_path_factory):
    """The demo as llama.cpp's own converter would leave it, under Stable Code's name."""
    path = tmp_path_factory.mktemp("foreign") / "stable-code-3b-q8_0.gguf"
    return rewritten(files["q8_0"], path, rope_base=None)


def doubts(path, **corrections):
    warnings = open_checkpoint(str(path), corrections=Corrections(**corrections)).warnings
    return [w for w in warnings if "trained with" in w]


def test_a_missing_or_wrong_base_is_warned_about(foreign, tmp_path):
    base, context = doubts(foreign)
    for words in ("gives no rotary base", "takes 10000", "--rope-theta 1000000", MENDED.name):
        assert words in base
    assert "--context 16384" in context
    assert doubts(foreign, rope_theta=STABLE_CODE_BASE, context=16384) == []
    wrong = rewritten(foreign, tmp_path / "stable-code.gguf", rope_base=10000.0)
    assert "rope_theta is 10000" in doubts(wrong)[0]


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"stablelm.context_length": 16384}, 1),  # whatever the file is called
        ({"stablelm.context_length": 16384, "stablelm.rope.freq_base": 1e6}, 0),
        ({"stablelm.context_length": 16384, "general.name": "Stable Code 3b"}, 1),
        ({"general.name": "Stable Code 3b"}, 2),
        ({}, 0),  # 10000 is right for StableLM 3B
    ],
)
def test_context_and_name_give_stable_code_away(tmp_path, keys, count):
    assert len(doubts(write_tiny(tmp_path / "model.gguf", keys))) == count

"""GGUF files through the converter, with llama.cpp beside them."""

import ctypes
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

import edge
from edge.convert.artefacts.manifest import read_manifest
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import Corrections, open_checkpoint
from edge.convert.convert import convert
from edge.convert.sources.find import DEMO_PATH
from edge.convert.sources.gguf import open_gguf
from edge.convert.targets import Options
from edge.convert.verify import find_origin, verify
from edge.errors import EdgeError
from edge.llama_cpp.session import LlamaSession, library
from edge.model.load import load_model
from tests.support.foreign_gguf import rewritten, write_tiny

KINDS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q4_k_m", "q2_k", "bf16")
# Which keeps what it has: the bits, and whether the head is another type (Q6_K).
KEPT = {"q8_0": (8, False), "q5_1": (5, True), "q5_0": (5, True), "q4_1": (4, True)}
KEPT["q4_0"] = (4, True)
IDS = list(range(100, 180))
STABLE_CODE_BASE = 1_000_000.0


def run(source, out, *names, corrections=None, **options):
    checkpoint = open_checkpoint(str(source), corrections=corrections)
    recipes = [RECIPES[name] for name in names]
    return convert(checkpoint, recipes, out, lambda *_: None, Options(**options))


def ours(path):
    return np.array(load_model(path, mx.float32)(mx.array([IDS])))[0]


def theirs(path):
    session = LlamaSession(path, 128, 1, "f32", flash_attention=False, gpu_layers=0)
    try:
        return session.all_logits(IDS)
    finally:
        session.close()


def relative(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def widened(source: Path, target: Path) -> Path:
    """llama.cpp's own float32 copy of the very same weights, which rounds no activations."""
    lib = library()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = 0, True, 1
    paths = str(source).encode(), str(target).encode()
    assert lib.llama_model_quantize(*paths, ctypes.byref(params)) == 0
    return target


@pytest.fixture(scope="module")
def files(demo_out, tmp_path_factory) -> dict[str, Path]:
    """The demo in every type, by the type's name."""
    out = tmp_path_factory.mktemp("files")
    made = run("demo", out, *(f"gguf-{kind}" for kind in KINDS))
    paths = {kind: artefact.path for kind, artefact in zip(KINDS, made, strict=True)}
    return paths | {kind: demo_out / f"gguf-{kind}.gguf" for kind in ("f32", "f16", "q6_k")}


@pytest.mark.parametrize("kind", KEPT)
def test_affine_types_keep_their_values(files, tmp_path, kind):
    bits, other_head = KEPT[kind]
    (made,) = run(files[kind], tmp_path, f"mlx-int{bits}")
    assert read_manifest(made.path).exact
    tensors, source = load_file(made.path / "model.safetensors"), open_gguf(files[kind]).weights
    for name, shape in source.shapes.items():
        parts = [tensors.get(name.replace(".weight", part)) for part in (".scales", ".biases")]
        if len(shape) == 1 or (other_head and name == "lm_head.weight"):
            assert np.array_equal(tensors[name], source.read(name).astype(np.float16))
            continue
        wide = (mx.array(part.astype(np.float32)) for part in parts)
        dense = mx.dequantize(mx.array(tensors[name]), *wide, group_size=32, bits=bits)
        assert np.array_equal(np.array(dense), source.read(name)), name
    check_notes(made, other_head)
    truth = theirs(widened(files[kind], tmp_path / "f32.gguf"))
    # Rounding the head to float16 moves logits of up to 20 by half a float16 step: measured 0.007.
    assert np.abs(ours(made.path) - truth).max() <= (0.015 if other_head else 5e-4)
    found = verify(made.path, open_checkpoint(str(files[kind])), lambda _: None)
    assert not found.problems
    assert found.compared_tensors == len(source.shapes)


def check_notes(made, other_head):
    assert f"{30 - other_head} of 30 quantised matrices keep" in made.notes[0]
    told = [n for n in made.notes if "float16" in n and "lm_head.weight: MLX has no form" in n]
    assert len(told) == other_head
    assert not any("rounded again" in note for note in made.notes)
    assert read_manifest(made.path).notes == made.notes


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_kept_values_run_in_plain_mlx_lm(files, tmp_path, kind):
    from mlx_lm import load

    (made,) = run(files[kind], tmp_path, f"mlx-int{KEPT[kind][0]}")
    peer, _ = load(str(made.path))
    peer.set_dtype(mx.float32)
    assert np.abs(np.array(peer(mx.array([IDS])))[0] - ours(made.path)).max() <= 1e-4


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_floats_are_no_quantised_source(files, tmp_path, kind):
    checkpoint = open_checkpoint(str(files[kind]))
    assert checkpoint.warnings == ()
    made = run(files[kind], tmp_path, "mlx-fp16", "mlx-int4")
    assert all(artefact.notes == () for artefact in made)
    truth = theirs(widened(files[kind], tmp_path / "f32.gguf"))
    assert np.abs(ours(made[0].path) - truth).max() <= 0.03
    assert 0.01 < relative(ours(made[1].path), truth) < 0.3
    with pytest.raises(EdgeError, match=r"--requantise is for quantised sources, and gguf-"):
        run(files[kind], tmp_path, "mlx-int4", requantise=True)


def test_float16_goes_through_bit_for_bit(files, demo_out, tmp_path):
    """The demo to GGUF to MLX is the demo to MLX."""
    (made,) = run(files["f16"], tmp_path, "mlx-int4")
    there, here = (load_file(p / "model.safetensors") for p in (demo_out / "mlx-int4", made.path))
    assert there.keys() == here.keys()
    assert all(np.array_equal(array, here[name]) for name, array in there.items())


@pytest.mark.parametrize(
    ("kind", "name", "limit", "why"),
    [
        ("q4_k_m", "mlx-fp16", 1e-3, False),
        ("q4_k_m", "mlx-int4", 0.4, True),
        ("q6_k", "mlx-int6", 0.08, True),
        ("q2_k", "mlx-int8", 0.04, True),
        ("q8_0", "mlx-int4", 0.4, False),
        ("q4_0", "mlx-int8", 0.04, False),
    ],
)
def test_rounding_again_is_close_and_says_its_loss(files, tmp_path, kind, name, limit, why):
    (made,) = run(files[kind], tmp_path, name)
    manifest = read_manifest(made.path)
    assert not manifest.exact
    assert any("rounded again: relative error" in note for note in manifest.notes)
    assert any("cannot be kept" in note and "no form for Q" in note for note in made.notes) == why
    truth = theirs(widened(files[kind], tmp_path / "f32.gguf"))
    assert relative(ours(made.path), truth) < limit
    found = verify(made.path, open_checkpoint(str(files[kind])), lambda _: None)
    assert not found.problems


def test_requantising_what_could_be_kept(files, tmp_path):
    (made,) = run(files["q4_0"], tmp_path, "mlx-int4", requantise=True)
    assert any("rounded again" in note for note in made.notes)
    settings = json.loads((made.path / "config.json").read_text())["quantization"]
    assert (settings["group_size"], settings["bits"]) == (64, 4)
    assert load_file(made.path / "model.safetensors")["lm_head.weight"].dtype == np.uint32


def test_a_gguf_file_of_a_gguf_file(files, tmp_path):
    made = run(files["q4_k_m"], tmp_path, "gguf-f16", "gguf-q8_0")
    truth = theirs(widened(files["q4_k_m"], tmp_path / "f32.gguf"))
    for artefact, limit in zip(made, (2e-3, 0.05), strict=True):
        assert any("rounded again" in note for note in artefact.notes)
        assert relative(theirs(artefact.path), truth) < limit


def test_tokenizer_and_chat_template_travel(files, tmp_path, held_out_text):
    from mlx_lm.utils import load_tokenizer

    (made,) = run(files["q4_0"], tmp_path, "mlx-int4")
    _, tokenizer = edge.load(made.path)
    demo = load_tokenizer(DEMO_PATH)
    special = "<fim_prefix>a<fim_suffix>b<fim_middle><|im_end|>\n"
    for text in (held_out_text, special, "café\t\t  x = 'ﬁ'\r\n"):
        assert tokenizer.encode(text) == demo.encode(text)
        assert tokenizer.decode(demo.encode(text)) == demo.decode(demo.encode(text))
    messages = [{"role": "user", "content": "add two numbers"}]
    templates = [
        t.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        for t in (tokenizer, demo)
    ]
    assert templates[0] == templates[1]
    assert tokenizer.eos_token_ids == demo.eos_token_ids


# ---- The rotary base that llama.cpp's converter leaves out


@pytest.fixture(scope="module")
def foreign(files, tmp_path_factory):
    """The demo as llama.cpp's own converter would leave it, under Stable Code's name."""
    path = tmp_path_factory.mktemp("foreign") / "stable-code-3b-q8_0.gguf"
    return rewritten(files["q8_0"], path, rope_base=None)


def doubts(path, **corrections):
    warnings = open_checkpoint(str(path), corrections=Corrections(**corrections)).warnings
    return [w for w in warnings if "trained with" in w]


def test_a_file_without_a_base_is_warned_about_with_both_remedies(foreign):
    base, context = doubts(foreign)
    assert "gives no rotary base" in base
    assert "llama.cpp takes 10000" in base
    assert "--rope-theta 1000000" in base
    assert "--to gguf-mended" in base
    assert "--context 16384" in context
    assert doubts(foreign, rope_theta=STABLE_CODE_BASE, context=16384) == []


def test_a_wrong_base_is_another_sentence(foreign, tmp_path):
    path = rewritten(foreign, tmp_path / "stable-code.gguf", rope_base=10000.0)
    assert "rope_theta is 10000" in doubts(path)[0]
    assert "gives no" not in doubts(path)[0]


def test_the_context_gives_it_away_too(tmp_path):
    """Whatever the file is called."""
    keys = {"stablelm.context_length": 16384}
    (base,) = doubts(write_tiny(tmp_path / "model.gguf", keys))
    assert "gives no rotary base" in base
    given = write_tiny(tmp_path / "good.gguf", {**keys, "stablelm.rope.freq_base": 1e6})
    assert doubts(given) == []
    assert doubts(write_tiny(tmp_path / "short.gguf")) == []  # 10000 is right for StableLM 3B


def test_a_name_inside_the_file_is_enough(tmp_path):
    keys = {"general.name": "Stable Code 3b", "stablelm.context_length": 16384}
    (base,) = doubts(write_tiny(tmp_path / "model.gguf", keys))
    assert "gives no rotary base" in base


def test_the_base_can_be_given(files, foreign, tmp_path):
    truth = theirs(widened(files["q8_0"], tmp_path / "f32.gguf"))
    right = run(
        foreign,
        tmp_path / "right",
        "mlx-int8",
        corrections=Corrections(rope_theta=STABLE_CODE_BASE),
    )
    (wrong,) = run(foreign, tmp_path / "wrong", "mlx-int8")
    assert np.abs(ours(right[0].path) - truth).max() <= 5e-4
    assert np.abs(ours(wrong.path) - truth).max() > 0.1
    config = json.loads((right[0].path / "config.json").read_text())
    assert config["rope_theta"] == STABLE_CODE_BASE
    assert read_manifest(right[0].path).corrections.rope_theta == STABLE_CODE_BASE
    assert not verify(right[0].path, find_origin(right[0].path, str(foreign)), print).problems


def test_an_artefact_with_another_base_is_another_artefact(foreign, tmp_path):
    run(foreign, tmp_path, "mlx-int8")
    with pytest.raises(EdgeError, match="from another checkpoint"):
        run(
            foreign,
            tmp_path,
            "mlx-int8",
            corrections=Corrections(rope_theta=STABLE_CODE_BASE),
        )

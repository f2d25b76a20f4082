"""GPTQ checkpoints through the converter, against the definition's own matrices."""

import json
import re

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import edge
from edge.bench.engines.mlx import open_mlx_lm
from edge.convert.artefacts.manifest import read_manifest
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.convert.targets import Options, list_artefacts
from edge.convert.verify import find_origin, verify
from edge.errors import EdgeError
from edge.formats import gptq as fmt
from edge.llama_cpp.session import LlamaSession
from edge.model.load import has_input_orders, load_model
from tests.convert.sources.test_gptq import BRANCHES, LAYER, in_turn
from tests.support.gptq_packer import LLAMA, STABLELM, Settings, make, write_gptq

IDS = np.random.RandomState(1).randint(0, 160, 40).tolist()
ACT_ORDER = "act-order"


def run(source, out, *names, **options):
    recipes = [RECIPES[name] for name in names]
    return convert(open_checkpoint(str(source)), recipes, out, lambda *_: None, Options(**options))


def logits(model):
    return np.array(model(mx.array([IDS])))[0]


def ours(path):
    return logits(load_model(path, mx.float32))


def peers(path):
    """What anybody with plain mlx-lm computes."""
    from mlx_lm import load

    model, _ = load(str(path))
    model.set_dtype(mx.float32)
    return logits(model)


def truth(folder, raw, matrices, ordinary):
    """Logits of a float32 network made of the definition's matrices."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = {name: array.astype(np.float32) for name, array in ordinary.items()}
    for stem, matrix in matrices.items():
        tensors[f"{stem}.weight"] = np.ascontiguousarray(matrix.dense().astype(np.float32))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return ours(folder)


def converted(tmp_path, raw, how, *names, options=None, **writing):
    """The first artefact and the logits it should have."""
    matrices, ordinary = write_gptq(tmp_path / "m", raw, how, **writing)
    made = run(tmp_path / "m", tmp_path / "out", *names, **(options or {}))
    return made[0], truth(tmp_path / "truth", raw, matrices, ordinary)


def stored(path):
    return load_file(path / "model.safetensors")


def check_bits(path, matrices, ordinary):
    """Codes and scales the definition's, biases exact, the other tensors untouched."""
    tensors = stored(path)
    settings = json.loads((path / "config.json").read_text())["quantization"]
    for stem, matrix in matrices.items():
        prefix, _, leaf = stem.rpartition(".")
        folded = leaf in ("gate_proj", "up_proj")
        rows = in_turn(matrices[f"{prefix}.down_proj"]) if folded else slice(None)
        codes = fmt.unpack(tensors[f"{stem}.weight"], matrix.bits)
        assert np.array_equal(codes, matrix.codes[in_turn(matrix)].T[rows]), stem
        scales = tensors[f"{stem}.scales"]
        repeats = scales.shape[1] // len(matrix.scales)
        assert scales.tobytes() == matrix.scales.T[rows].repeat(repeats, axis=1).tobytes()
        zeros = matrix.zeros.T[rows].repeat(repeats, axis=1).astype(np.float64)
        assert np.array_equal(tensors[f"{stem}.biases"], -zeros * scales.astype(np.float64))
        own = settings.get(stem, settings)
        assert (own["bits"], own["group_size"]) == (
            matrix.bits,
            codes.shape[1] // scales.shape[1],
        )
    for name, array in ordinary.items():
        assert tensors[name].dtype == np.float16
        assert np.array_equal(tensors[name], array), name


@pytest.mark.parametrize(("raw", "how"), BRANCHES)
def test_every_branch_of_both_cards_keeps_its_values(tmp_path, raw, how):
    matrices, ordinary = write_gptq(tmp_path / "m", raw, how)
    source = open_checkpoint(str(tmp_path / "m"))
    assert source.warnings == ()
    (made,) = run(tmp_path / "m", tmp_path / "out", f"mlx-int{how.bits}")
    check_bits(made.path, matrices, ordinary)
    wanted = truth(tmp_path / "truth", raw, matrices, ordinary)
    assert np.abs(ours(made.path) - wanted).max() <= 1e-4
    assert "14 of 14 quantised matrices keep the source's own" in made.notes[0]

    ordered = how.act_order and how.group_size != -1
    assert has_input_orders(made.path) == ordered
    assert any(ACT_ORDER in note and "--requantise" in note for note in made.notes) == ordered
    assert len(made.notes) == 1 + ordered
    if ordered:  # nonsense if they were passed over
        with pytest.raises(ValueError, match="not in model"):
            peers(made.path)
        with pytest.raises(EdgeError, match=r"act-order .* mlx-lm .*--requantise"):
            open_mlx_lm(made.path)
    else:
        assert np.abs(peers(made.path) - wanted).max() <= 1e-4
        open_mlx_lm(made.path)

    manifest = read_manifest(made.path)
    assert manifest.exact
    assert manifest.notes == made.notes
    assert manifest.recipe["group_size"] == min(how.group_size % 2**32, 128)
    found = verify(made.path, source, lambda _: None)
    assert not found.problems
    assert found.compared_tensors == len(source.weights.shapes)
    assert found.worst[0].relative == 0


def test_edge_load_runs_it(tmp_path):
    made, wanted = converted(tmp_path, STABLELM, Settings(4, 128), "mlx-int4")
    model, tokenizer = edge.load(made.path)
    model.set_dtype(mx.float32)
    assert np.abs(logits(model) - wanted).max() <= 1e-4
    assert tokenizer.decode(tokenizer.encode("a!!b")) == "a!!b"


def test_token_by_token_is_the_same(tmp_path):
    """Orders are gathered in decoding as in prefilling."""
    from mlx_lm.models.cache import make_prompt_cache

    made, wanted = converted(tmp_path, STABLELM, Settings(4, 32), "mlx-int4")
    model = load_model(made.path, mx.float32)
    cache = make_prompt_cache(model)
    steps = [np.array(model(mx.array([[token]]), cache))[0, 0] for token in IDS]
    assert np.abs(np.stack(steps) - wanted).max() <= 1e-4


@pytest.mark.parametrize(
    "how",
    [
        Settings(2, 64),
        Settings(3, 128),
        Settings(3, 32, act_order=False),
        Settings(4, 256, overrides={"down_proj": {"group_size": 192}}),
        Settings(4, 64, stored_as="gptq_v2"),
        Settings(4, 64, overrides={"o_proj": {"bits": 8}, "down_proj": {"act_order": False}}),
    ],
    ids=str,
)
def test_what_other_checkpoints_have_is_kept_too(tmp_path, how):
    matrices, ordinary = write_gptq(tmp_path / "m", STABLELM, how, zero_biases=True)
    (made,) = run(tmp_path / "m", tmp_path / "out", f"mlx-int{how.bits}")
    check_bits(made.path, matrices, ordinary)
    wanted = truth(tmp_path / "truth", STABLELM, matrices, ordinary)
    assert np.abs(ours(made.path) - wanted).max() <= 1e-4


# ---- Rounding again


@pytest.mark.parametrize("raw", [STABLELM, LLAMA], ids=["stablelm", "llama"])
def test_requantising_makes_an_artefact_for_everybody_and_says_the_loss(tmp_path, raw):
    made, wanted = converted(
        tmp_path, raw, Settings(4, 64), "mlx-int4", options={"requantise": True}
    )
    check_loss_is_stated(made)
    assert not read_manifest(made.path).exact
    assert not has_input_orders(made.path)
    mine = ours(made.path)
    assert np.abs(peers(made.path) - mine).max() <= 1e-4
    assert 0.001 < relative(mine, wanted) < 0.5
    assert not verify(made.path, open_checkpoint(str(tmp_path / "m")), lambda _: None).problems


def relative(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def check_loss_is_stated(made):
    (note,) = [note for note in made.notes if "rounded again" in note]
    assert "relative error" in note
    assert note in read_manifest(made.path).notes


@pytest.mark.parametrize(
    ("name", "limit"), [("mlx-int8", 0.02), ("mlx-int6", 0.06), ("mlx-fp16", 1e-3)]
)
def test_other_precisions_are_close_and_say_so(tmp_path, name, limit):
    made, wanted = converted(tmp_path, STABLELM, Settings(4, 128), name)
    check_loss_is_stated(made)
    assert relative(ours(made.path), wanted) < limit
    assert np.abs(peers(made.path) - ours(made.path)).max() <= 1e-4


@pytest.mark.parametrize(
    ("name", "limit"), [("gguf-f16", 1e-3), ("gguf-q8_0", 0.05), ("gguf-q4_0", 0.5)]
)
def test_gguf_of_gptq_in_llama_cpp(tmp_path, name, limit):
    made, wanted = converted(tmp_path, STABLELM, Settings(4, 128), name)
    check_loss_is_stated(made)
    session = LlamaSession(made.path, 64, 1, "f32", flash_attention=False, gpu_layers=0)
    try:
        assert relative(session.all_logits(IDS), wanted) < limit
    finally:
        session.close()


def test_code_llama_has_no_gguf_form_here(tmp_path):
    write_gptq(tmp_path / "m", LLAMA, Settings())
    with pytest.raises(EdgeError, match="writes GGUF for StableLM only"):
        run(tmp_path / "m", tmp_path / "out", "gguf-f16")
    listed = list_artefacts(open_checkpoint(str(tmp_path / "m")))
    assert {item.recipe.framework for item in listed} == {"MLX"}
    assert [item.artefact for item in listed if item.exact] == ["mlx-int4"]


def test_an_exact_artefact_is_not_taken_for_a_requantised_one(tmp_path):
    """At 64 in a group both have the same bits and groups."""
    write_gptq(tmp_path / "m", STABLELM, Settings(4, 64))
    run(tmp_path / "m", tmp_path / "out", "mlx-int4")
    with pytest.raises(EdgeError, match="made with other options"):
        run(tmp_path / "m", tmp_path / "out", "mlx-int4", requantise=True)
    (made,) = run(tmp_path / "m", tmp_path / "out", "mlx-int4", requantise=True, force=True)
    assert not has_input_orders(made.path)


@pytest.mark.parametrize(("group_size", "exact"), [(128, True), (64, False)])
def test_asking_for_the_sources_own_groups_keeps_its_values(tmp_path, group_size, exact):
    write_gptq(tmp_path / "m", STABLELM, Settings(4, 128))
    (made,) = run(tmp_path / "m", tmp_path / "out", "mlx-int4", group_size=group_size)
    assert read_manifest(made.path).exact == exact
    assert any("rounded again" in note for note in made.notes) != exact


# ---- What cannot be kept


@pytest.mark.parametrize(
    ("bits", "largest"),
    [(4, 0.01), (8, 0.15)],
)
def test_asymmetric_zero_points_are_off_by_what_is_said_and_no_more(tmp_path, bits, largest):
    how = Settings(bits, 64, sym=False, stored_as="gptq_v2", act_order=False)
    matrices, ordinary = write_gptq(tmp_path / "m", STABLELM, how)
    (made,) = run(tmp_path / "m", tmp_path / "out", f"mlx-int{bits}")
    (note,) = [note for note in made.notes if "zero point" in note]
    stated = float(note.split("up to ")[1].split()[0])
    assert stated <= largest
    tensors, worst = stored(made.path), 0.0
    for stem, matrix in matrices.items():
        parts = (tensors[f"{stem}.{part}"].astype(np.float32) for part in ("scales", "biases"))
        dense = mx.dequantize(mx.array(tensors[f"{stem}.weight"]), *map(mx.array, parts), 64, bits)
        steps = matrix.scales.T.astype(np.float64).repeat(64, axis=1)
        worst = max(worst, (np.abs(np.array(dense) - matrix.dense()) / steps).max())
    assert worst == pytest.approx(stated, rel=0.05)
    wanted = truth(tmp_path / "truth", STABLELM, matrices, ordinary)
    assert relative(ours(made.path), wanted) < 2e-3
    assert np.abs(peers(made.path) - ours(made.path)).max() <= 1e-4


QKV = ("q_proj", "k_proj", "v_proj")


@pytest.mark.parametrize(
    ("how", "in_float", "words"),
    [
        (
            Settings(overrides={"k_proj": {"group_size": 64}}),
            QKV,
            "q_proj.weight and 5 more: q_proj, k_proj, v_proj have no order",
        ),
        (
            Settings(overrides={"o_proj": {"group_size": 16}}),
            ("o_proj",),
            "o_proj.weight and 1 more: its groups of 16",
        ),
        (
            Settings(overrides={"down_proj": {"group_size": 16}}),
            ("down_proj",),
            "groups of 16",
        ),
        (
            Settings(overrides={"v_proj": {"group_size": 160}}),
            QKV,
            "no order of inputs in common.*v_proj.* different sizes",
        ),
    ],
    ids=["unequal-orders", "groups-of-16", "down-of-16", "ragged"],
)
def test_matrices_that_mlx_cannot_hold_stay_in_float16_and_are_named(
    tmp_path, how, in_float, words
):
    matrices, ordinary = write_gptq(tmp_path / "m", STABLELM, how)
    (made,) = run(tmp_path / "m", tmp_path / "out", "mlx-int4")
    (note,) = [note for note in made.notes if "in float16" in note]
    assert re.search(words, note)
    tensors = stored(made.path)
    for stem, matrix in matrices.items():
        if stem.endswith(in_float):
            dense = matrix.dense().astype(np.float32).astype(np.float16)
            assert np.array_equal(tensors[f"{stem}.weight"], dense)
            assert f"{stem}.scales" not in tensors
        else:
            assert tensors[f"{stem}.weight"].dtype == np.uint32
    wanted = truth(tmp_path / "truth", STABLELM, matrices, ordinary)
    assert relative(ours(made.path), wanted) < 1e-3
    found = verify(made.path, open_checkpoint(str(tmp_path / "m")), lambda _: None)
    assert not found.problems


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (Settings(4, 16), "groups of 16"),
        (Settings(4, 160, act_order=False), "different sizes"),
        # One of seven could be kept: an artefact of 4 bits is no 16-bit one with a patch.
        (Settings(4, 16, overrides={"v_proj": {"group_size": 32, "act_order": False}}), "of 16"),
    ],
    ids=["16", "ragged", "nearly-all"],
)
def test_what_can_hardly_be_kept_is_rounded_again_and_why_is_said(tmp_path, how, reason):
    made, wanted = converted(tmp_path, STABLELM, how, "mlx-int4")
    assert any("cannot be kept" in note and reason in note for note in made.notes)
    check_loss_is_stated(made)
    assert stored(made.path)["model.layers.0.self_attn.q_proj.weight"].dtype == np.uint32
    assert relative(ours(made.path), wanted) < 0.5
    assert np.abs(peers(made.path) - ours(made.path)).max() <= 1e-4


def test_a_quantised_head_is_kept(tmp_path):
    head = make(STABLELM, Settings(act_order=False))[0][f"{LAYER}self_attn.o_proj"]

    def quantise_head(tensors):
        del tensors["lm_head.weight"]
        tensors.update(head.tensors("lm_head", Settings()))

    raw = {**STABLELM, "vocab_size": 256}
    matrices, ordinary = write_gptq(tmp_path / "m", raw, Settings(), change=quantise_head)
    (made,) = run(tmp_path / "m", tmp_path / "out", "mlx-int4")
    assert stored(made.path)["lm_head.weight"].dtype == np.uint32
    del ordinary["lm_head.weight"]
    wanted = truth(tmp_path / "truth", raw, {**matrices, "lm_head": head}, ordinary)
    assert np.abs(ours(made.path) - wanted).max() <= 1e-4


# ---- Files as they come


@pytest.mark.parametrize("stored_as", ["gptq", "gptq_v2"])
def test_a_wrong_label_is_warned_about_and_the_weights_are_right(tmp_path, stored_as):
    matrices, ordinary = write_gptq(tmp_path / "m", STABLELM, Settings(stored_as=stored_as))
    label = {"gptq": "gptq_v2", "gptq_v2": "gptq"}[stored_as]
    config = tmp_path / "m" / "quantize_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "checkpoint_format": label}))
    (warning,) = open_checkpoint(str(tmp_path / "m")).warnings
    assert f"stored as '{label}'" in warning
    (made,) = run(tmp_path / "m", tmp_path / "out", "mlx-int4")
    wanted = truth(tmp_path / "truth", STABLELM, matrices, ordinary)
    assert np.abs(ours(made.path) - wanted).max() <= 1e-4


@pytest.mark.parametrize("name", ["gptq_model-4bit-128g.safetensors", "model.safetensors"])
@pytest.mark.parametrize("inside", [True, False])
def test_old_and_new_names_of_files(tmp_path, name, inside):
    matrices, ordinary = write_gptq(tmp_path / "m", STABLELM, Settings(), inside_config=inside)
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / name)
    (made,) = run(tmp_path / "m", tmp_path / "out", "mlx-int4")
    check_bits(made.path, matrices, ordinary)
    config = json.loads((made.path / "config.json").read_text())
    assert config["quantization_config"] == config["quantization"]  # nothing of GPTQ's is left
    assert name in read_manifest(made.path).source_sha256
    assert not (made.path / "quantize_config.json").exists()


def test_the_configs_of_the_stable_code_branches(tmp_path):
    """stablelm_epoch with code of its own, which is not taken along."""
    epoch = {k: v for k, v in STABLELM.items() if k not in ("layer_norm_eps", "use_qkv_bias")}
    epoch |= {
        "model_type": "stablelm_epoch",
        "norm_eps": 1e-5,
        "rope_pct": epoch.pop("partial_rotary_factor"),
        "auto_map": {"AutoConfig": "configuration_stablelm_epoch.StableLMEpochConfig"},
    }
    matrices, ordinary = write_gptq(tmp_path / "m", STABLELM, Settings(8, -1))
    (tmp_path / "m" / "config.json").write_text(json.dumps(epoch))
    (tmp_path / "m" / "modeling_stablelm_epoch.py").write_text("raise SystemExit")
    (made,) = run(tmp_path / "m", tmp_path / "out", "mlx-int8")
    wanted = truth(tmp_path / "truth", STABLELM, matrices, ordinary)
    assert np.abs(ours(made.path) - wanted).max() <= 1e-4
    assert np.abs(peers(made.path) - wanted).max() <= 1e-4
    assert not list(made.path.glob("*.py"))


def test_verify_finds_a_changed_code_and_another_checkpoint(tmp_path):
    write_gptq(tmp_path / "m", STABLELM, Settings())
    write_gptq(tmp_path / "n", STABLELM, Settings(), seed=1)
    (made,) = run(tmp_path / "m", tmp_path / "out", "mlx-int4")
    assert find_origin(made.path) is None  # a directory's place is nobody's business
    other = find_origin(made.path, str(tmp_path / "n"))
    (problem,) = verify(made.path, other, lambda _: None).problems
    assert "was not made from n" in problem
    tensors = stored(made.path)
    tensors[f"{LAYER}self_attn.v_proj.weight"][7, 3] ^= 1 << 13
    save_file(tensors, made.path / "model.safetensors", metadata={"format": "mlx"})
    found = verify(made.path, open_checkpoint(str(tmp_path / "m")), lambda _: None)
    assert any("model.safetensors has changed" in problem for problem in found.problems)
    assert any("v_proj.weight is not the source's own" in problem for problem in found.problems)
    assert len(found.problems) == 2


def test_an_artefact_is_a_source_again(tmp_path):
    """Twice converted is as once: orders and all."""
    write_gptq(tmp_path / "m", STABLELM, Settings(4, 32))
    (once,) = run(tmp_path / "m", tmp_path / "out", "mlx-int4")
    twice, plain = run(once.path, tmp_path / "again", "mlx-int4", "mlx-fp16")
    assert stored(twice.path).keys() == stored(once.path).keys()
    assert all(np.array_equal(a, stored(once.path)[n]) for n, a in stored(twice.path).items())
    assert relative(ours(plain.path), ours(once.path)) < 1e-3
    assert np.abs(peers(plain.path) - ours(plain.path)).max() <= 1e-4


def test_scales_of_bfloat16_are_not_taken_for_float16(tmp_path):
    """As mlx-lm's own converter leaves them in many artefacts on the hub."""
    write_gptq(tmp_path / "m", STABLELM, Settings(4, 32, act_order=False))
    (made,) = run(tmp_path / "m", tmp_path / "out", "mlx-int4")
    tensors = mx.load(str(made.path / "model.safetensors"))
    floats = {n: a.astype(mx.bfloat16) for n, a in tensors.items() if a.dtype == mx.float16}
    mx.save_safetensors(str(made.path / "model.safetensors"), {**tensors, **floats})
    (again,) = run(made.path, tmp_path / "again", "mlx-int4")
    assert any("keep the source's own values" in note for note in again.notes)
    assert {a.dtype for n, a in stored(again.path).items() if n.endswith("scales")} == {
        np.dtype(np.float16)
    }
    assert np.abs(ours(again.path) - ours(made.path)).max() <= 1e-4

"""An MLX directory as a source: kept exactly, turned into GGUF, or rounded again with its loss."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.convert.sources.weights import Packing
from edge.convert.targets import Options
from edge.convert.verify import verify
from edge.errors import EdgeError
from edge.llama_cpp.session import LlamaSession
from edge.model.load import load_model
from tests.support.gptq_packer import STABLELM, Settings, write_gptq
from tests.support.tiny import CONFIGS, token_ids, write_checkpoint

# Rows of 160 and 96 columns: the first divide into groups of 32, the others not into 64.
RAW = {**CONFIGS["stable-code"], "hidden_size": 256, "intermediate_size": 320}
WEIGHTS = "model.safetensors"


def make(source, out, *names, **options):
    recipes = [RECIPES[name] for name in names]
    return convert(open_checkpoint(str(source)), recipes, out, lambda *_: None, Options(**options))


@pytest.fixture(scope="module")
def int4(tmp_path_factory):
    """An mlx-int4 artefact; not to be changed."""
    folder = tmp_path_factory.mktemp("mlx")
    return make(write_checkpoint(folder / "tiny", RAW), folder / "out", "mlx-int4")[0].path


def mlx_logits(path):
    ids = token_ids(open_checkpoint(str(path)).config)
    return np.array(load_model(path, mx.float32)(mx.array(ids)))[0]


def llama_logits(path, ids):
    session = LlamaSession(path, 64, 1, kv_type="f32", flash_attention=False)
    logits = session.all_logits(ids.tolist())
    session.close()
    return logits


def relative(a, b):
    return np.abs(a - b).max() / b.std()


# --- what is read


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_every_matrix_is_read_as_mlx_reads_it(tmp_path, bits, group_size):
    source = write_checkpoint(tmp_path / "tiny", RAW)
    (made,) = make(source, tmp_path / "out", f"mlx-int{bits}", group_size=group_size)
    weights = open_checkpoint(str(made.path)).weights
    stored = mx.load(str(made.path / WEIGHTS))
    packed = 0
    for name, shape in weights.shapes.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.scales" not in stored:
            assert weights.packing(name) is None
            assert np.array_equal(weights.read(name), np.array(stored[name]))
            continue
        packed += 1
        assert weights.packing(name) == Packing(bits, group_size)
        parts = [
            stored[name],
            *(stored[f"{stem}.{p}"].astype(mx.float32) for p in ("scales", "biases")),
        ]
        expected = np.array(mx.dequantize(*parts, group_size=group_size, bits=bits))
        whole = weights.read(name)
        assert whole.dtype == np.float32
        assert np.array_equal(whole, expected)
        assert np.array_equal(weights.read(name, 3, 9), expected[3:9])
        assert whole.shape == shape
    assert packed
    assert weights.quantised


def test_an_act_order_artefact_is_read_in_the_networks_order(tmp_path):
    """down_proj's order is in the rows of gate and up, so these are compared as a network."""
    write_gptq(tmp_path / "gptq", STABLELM, Settings())
    exact, float16 = make(tmp_path / "gptq", tmp_path / "out", "mlx-int4", "mlx-fp16")
    again = open_checkpoint(str(exact.path)).weights
    original = open_checkpoint(str(tmp_path / "gptq")).weights
    for leaf in ("q_proj", "k_proj", "v_proj", "o_proj"):
        name = f"model.layers.1.self_attn.{leaf}.weight"
        assert again.packing(name).permuted
        assert np.abs(again.read(name) - original.read(name)).max() < 1e-6
    (gguf,) = make(exact.path, tmp_path / "from-exact", "gguf-f16")
    ids = token_ids(open_checkpoint(str(exact.path)).config)[0]
    assert relative(llama_logits(gguf.path, ids), mlx_logits(float16.path)) < 0.02


# --- what is made of it


def test_int4_to_int4_is_an_exact_copy(int4, tmp_path):
    (made,) = make(int4, tmp_path / "out", "mlx-int4")
    theirs, ours = (mx.load(str(path / WEIGHTS)) for path in (int4, made.path))
    assert theirs.keys() == ours.keys()
    for name, array in theirs.items():
        assert array.dtype == ours[name].dtype
        assert mx.array_equal(array, ours[name]).item(), name
    assert any("the source's own" in note for note in made.notes)
    assert not any("rounded again" in note for note in made.notes)
    for key in ("quantization", "rope_theta", "torch_dtype"):
        old, new = (json.loads((p / "config.json").read_text())[key] for p in (int4, made.path))
        assert old == new
    assert np.array_equal(mlx_logits(made.path), mlx_logits(int4))


def test_int4_to_gguf_f16_agrees_in_llama_cpp(int4, tmp_path):
    (made,) = make(int4, tmp_path / "out", "gguf-f16")
    ids = token_ids(open_checkpoint(str(int4)).config)[0]
    assert relative(llama_logits(made.path, ids), mlx_logits(int4)) < 0.02
    checkpoint = open_checkpoint(str(int4))
    assert verify(made.path, checkpoint, lambda _: None).problems == ()


def test_int4_to_fp16_agrees_in_mlx(int4, tmp_path):
    (made,) = make(int4, tmp_path / "out", "mlx-fp16")
    assert relative(mlx_logits(made.path), mlx_logits(int4)) < 0.01


def test_int4_to_int8_states_its_loss(int4, tmp_path):
    (made,) = make(int4, tmp_path / "out", "mlx-int8")
    (note,) = [note for note in made.notes if "rounded again" in note]
    original, stored = (open_checkpoint(str(path)).weights for path in (int4, made.path))
    errors = {
        name: np.sqrt(
            np.mean((stored.read(name) - (a := original.read(name).astype(np.float64))) ** 2)
            / np.mean(a**2)
        )
        for name in original.shapes
    }
    worst = max(errors, key=errors.get)
    # Tall matrices are compared in places only.
    assert float(note.split(" in the worst")[0].split()[-1]) == pytest.approx(
        errors[worst], rel=0.2
    )
    assert errors[worst] > 0.001
    assert relative(mlx_logits(made.path), mlx_logits(int4)) < 0.1
    assert verify(made.path, open_checkpoint(str(int4)), lambda _: None).problems == ()


def test_requantise_rounds_again_and_group_size_too(int4, tmp_path):
    for number, options in enumerate(({"requantise": True}, {"group_size": 32})):
        (made,) = make(int4, tmp_path / str(number), "mlx-int4", **options)
        assert any("rounded again" in note for note in made.notes)


def test_a_mixed_artefact_is_copied_with_its_mixture(tmp_path):
    source = write_checkpoint(tmp_path / "tiny", {**RAW, "num_hidden_layers": 8})
    (mixed,) = make(source, tmp_path / "out", "mlx-mixed_4_6")
    (made,) = make(mixed.path, tmp_path / "again", "mlx-int4")
    assert np.array_equal(mlx_logits(made.path), mlx_logits(mixed.path))
    bits = {
        p.bits for n in CONFIG_NAMES if (p := open_checkpoint(str(made.path)).weights.packing(n))
    }
    assert bits == {4, 6}


CONFIG_NAMES = ("model.layers.3.mlp.gate_proj.weight", "lm_head.weight")


def test_artefacts_of_mlx_lm_are_sources_too(tmp_path):
    """Also with bfloat16 scales, as most published ones have."""
    from mlx_lm.convert import convert as mlx_lm_convert

    source = write_checkpoint(tmp_path / "tiny", RAW)
    for dtype in ("float16", "bfloat16"):
        peer = tmp_path / dtype
        mlx_lm_convert(
            str(source), str(peer), quantize=True, q_bits=4, q_group_size=64, dtype=dtype
        )
        out = tmp_path / f"{dtype}-out"
        for made in make(peer, out, "mlx-int4", "mlx-int8", "gguf-f16"):
            assert verify(made.path, open_checkpoint(str(peer)), lambda _: None).problems == ()
        assert relative(mlx_logits(out / "mlx-int8"), mlx_logits(peer)) < 0.1
        kept, original = (open_checkpoint(str(p)).weights for p in (out / "mlx-int4", peer))
        for name in ("model.layers.0.mlp.gate_proj.weight", "lm_head.weight"):
            assert np.array_equal(kept.read(name), original.read(name))


def test_bfloat16_scales_that_float16_cannot_hold_are_named(int4, tmp_path):
    def enlarge(tensors):
        tensors[f"{Q}.scales"] = np.full_like(tensors[f"{Q}.scales"], 1e6, dtype=np.float32)
        tensors[f"{Q}.biases"] = tensors[f"{Q}.biases"].astype(np.float32)

    weights = open_checkpoint(str(broken(int4, tmp_path, enlarge))).weights
    assert weights.packing(f"{Q}.weight") is None
    assert "float16" in weights.unpackable[f"{Q}.weight"]
    assert weights.read(f"{Q}.weight").max() > 1e6


# --- what is refused


def broken(int4, tmp_path, change):
    path = tmp_path / "broken"
    shutil.copytree(int4, path)
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS)
    (path / "model.safetensors.index.json").unlink()
    return path


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop(f"{Q}.biases"),
        lambda t: t.update({f"{Q}.biases": t[f"{Q}.biases"][:, :2].copy()}),
        lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"][:-1].copy()}),
        lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"].view(np.float32)}),
        lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"][:, :7].copy()}),
        lambda t: t.update({f"{Q}.{p}": t[f"{Q}.{p}"][:, :0].copy() for p in ("scales", "biases")}),
        lambda t: t.update({f"{Q}.{p}": t[f"{Q}.{p}"][0].copy() for p in ("scales", "biases")}),
        lambda t: t.update({f"{Q}.{p}": t[f"{Q}.{p}"][:, :1].copy() for p in ("scales", "biases")}),
        lambda t: t.update({f"{Q}.weight": np.tile(t[f"{Q}.weight"], (1, 4))}),
    ],
    ids=[
        *("no-biases", "fewer-groups", "fewer-rows", "float-codes", "odd-codes", "no-groups"),
        *("flat-scales", "groups-of-256", "16-bits"),
    ],
)
def test_parts_that_do_not_fit_are_a_sentence(int4, tmp_path, change):
    path = broken(int4, tmp_path, change)
    with pytest.raises(EdgeError, match=rf"{Q}\.weight|unquantised|missing"):
        open_checkpoint(str(path))


def test_a_tensor_too_many_is_named(int4, tmp_path):
    path = broken(int4, tmp_path, lambda t: t.update({"more.weight": np.zeros(3, np.float16)}))
    with pytest.raises(EdgeError, match=r"tensor more\.weight is not part"):
        open_checkpoint(str(path))

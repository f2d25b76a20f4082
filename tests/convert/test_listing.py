"""What --list foretells is what convert makes: MLX to the byte, quantised GGUF about."""

import json

import mlx.core as mx
import numpy as np
import pytest

import edge
from edge.cli.main import main
from edge.convert.artefacts.recipes import GROUP_SIZES, RECIPES
from edge.convert.artefacts.sizes import bits_per_weight, tensor_bytes
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.convert.listing import list_artefacts
from edge.convert.targets import Options
from edge.convert.verify import verify
from edge.errors import EdgeError
from edge.llama_cpp.session import LlamaSession
from edge.model.load import load_model
from tests.support.gptq_packer import STABLELM, Settings, write_gptq
from tests.support.tiny import CONFIGS, LLAMA, PLAIN, write_checkpoint

QUIET = lambda *_: None  # noqa: E731
# Rows that no block divides, and vectors whose bytes no alignment does.
ODD = {**PLAIN, "hidden_size": 72, "intermediate_size": 100, "vocab_size": 163}


def listed(path, **options):
    return {a.recipe.name: a for a in list_artefacts(open_checkpoint(str(path)), **options)}


@pytest.fixture(scope="module")
def every_demo(tmp_path_factory):
    """The demo in every recipe there is."""
    out = tmp_path_factory.mktemp("every")
    return {
        made.recipe.name: made.path
        for made in convert(open_checkpoint("demo"), list(RECIPES.values()), out, QUIET)
    }


def test_every_recipe_of_the_demo_is_foretold_and_verifies(every_demo):
    demo = open_checkpoint("demo")
    foretold = listed("demo")
    assert list(foretold) == list(RECIPES)
    for name, path in every_demo.items():
        error = 0.02 if foretold[name].estimated else 0
        expected = pytest.approx(foretold[name].weight_bytes, rel=error, abs=0)
        assert tensor_bytes(path) == expected, name
        expected = pytest.approx(foretold[name].bits_per_weight, rel=error, abs=0)
        assert bits_per_weight(path, demo.parameters) == expected, name
        assert verify(path, demo, QUIET).problems == (), name


def last_logits(path, ids):
    """Of the last position, by the engine that the artefact is for."""
    if path.is_dir():
        return np.array(load_model(path, mx.float32)(mx.array([ids]))[0, -1])
    session = LlamaSession(path, 64, 2)
    session.decode(ids)
    logits = session.last_logits()
    session.close()
    return logits


def test_every_recipe_of_the_demo_runs_and_means_the_same(every_demo):
    _, tokenizer = edge.load(every_demo["mlx-fp16"])
    ids = tokenizer.encode("def add(a, b):\n    return")
    expected = last_logits(every_demo["mlx-fp16"], ids)
    for name, path in every_demo.items():
        likeness = np.corrcoef(last_logits(path, ids), expected)[0, 1]
        few = any(mark in name for mark in ("int2", "int3", "_2_6", "_3_", "q2", "q3"))
        assert likeness > (0.6 if few else 0.95), (name, likeness)


def test_fewer_bits_are_fewer_bytes():
    sizes = {name: a.weight_bytes for name, a in listed("demo").items()}
    for names in (
        ["mlx-fp16", *(f"mlx-int{bits}" for bits in (8, 6, 5, 4, 3, 2))],
        [f"gguf-{n}" for n in ("f32", "f16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m")],
    ):
        found = [sizes[name] for name in names]
        assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("name", ["tied", "stablelm-2-12b", "odd"])
def test_shapes_of_all_kinds_are_foretold_to_the_byte(tmp_path, name):
    source = write_checkpoint(tmp_path / name, ODD if name == "odd" else CONFIGS[name])
    recipes = [RECIPES[n] for n in ("mlx-int4", "mlx-mixed_3_4", "gguf-bf16")]
    foretold = listed(source)
    for made in convert(open_checkpoint(str(source)), recipes, tmp_path / "out", QUIET):
        assert tensor_bytes(made.path) == foretold[made.recipe.name].weight_bytes, made.path


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_group_sizes_are_foretold_to_the_byte(tmp_path, group_size):
    source = write_checkpoint(tmp_path / "tiny", CONFIGS["stable-code"])
    foretold = listed(source, group_size=group_size)
    recipes = [RECIPES["mlx-int5"], RECIPES["mlx-mixed_4_6"]]
    options = Options(group_size=group_size)
    for made in convert(open_checkpoint(str(source)), recipes, tmp_path / "out", QUIET, options):
        assert tensor_bytes(made.path) == foretold[made.recipe.name].weight_bytes
        assert made.recipe.group_size == group_size


def test_a_quantised_source_lists_what_keeps_its_values(tmp_path):
    write_gptq(tmp_path / "gptq", STABLELM, Settings())
    foretold = listed(tmp_path / "gptq")
    assert [name for name, artefact in foretold.items() if artefact.exact] == ["mlx-int4"]
    checkpoint = open_checkpoint(str(tmp_path / "gptq"))
    (made,) = convert(checkpoint, [RECIPES["mlx-int4"]], tmp_path / "out", QUIET)
    assert tensor_bytes(made.path) == foretold["mlx-int4"].weight_bytes


def test_a_llama_has_no_gguf_here(tmp_path):
    source = write_checkpoint(tmp_path / "llama", LLAMA)
    assert all(name.startswith("mlx-") for name in listed(source))
    with pytest.raises(EdgeError, match="StableLM only"):
        convert(open_checkpoint(str(source)), [RECIPES["gguf-f16"]], tmp_path / "out", QUIET)


def test_the_published_model_has_its_known_sizes(capsys):
    assert main(["convert", "synthetic:stable-code-3b", "--list", "-o", "json"]) == 0
    rows = {row["artefact"]: row for row in json.loads(capsys.readouterr().out)}
    bits = {name: row["bits_per_weight"] for name, row in rows.items()}
    assert rows["mlx-fp16"]["weight_bytes"] == 2 * 2_795_443_200
    assert bits["mlx-int4"] == pytest.approx(4.5, abs=0.005)
    assert bits["mlx-int8"] == pytest.approx(8.5, abs=0.005)
    # What llama.cpp makes of it.
    real = {"q8_0": 8.50, "q6_k": 6.57, "q5_k_m": 5.70, "q5_k_s": 5.55, "q5_1": 6.03, "q5_0": 5.55,
            "q4_k_m": 4.88, "q4_1": 5.08, "q4_0": 4.60, "q3_k_m": 3.98, "q2_k": 3.10}  # fmt: skip
    for name, expected in real.items():
        assert bits[f"gguf-{name}"] == pytest.approx(expected, rel=0.02), name
    assert main(["convert", "synthetic:stable-code-3b", "--list", "--group-size", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("mlx-int4")).split()[1] == "5.00"
    assert len(lines) == 1 + len(RECIPES)

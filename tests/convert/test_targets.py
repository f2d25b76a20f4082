"""Artefacts have the sizes that --list states: quantised GGUF files within 2 %."""

import numpy as np
import pytest

from edge.convert.artefacts.recipes import GROUP_SIZES, RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.targets import bits_per_weight, list_artefacts, tensor_bytes
from edge.convert.verify import verify
from tests.support.conversions import edge_logits, llama_logits, make
from tests.support.tiny import CONFIGS, PLAIN, write_checkpoint

# Rows that no block divides, and vectors whose bytes no alignment does.
ODD = {**PLAIN, "hidden_size": 72, "intermediate_size": 100, "vocab_size": 163}


def listed(path, **options):
    return {a.artefact: a for a in list_artefacts(open_checkpoint(str(path)), **options)}


@pytest.fixture(scope="module")
def every_demo(tmp_path_factory):
    return {a.recipe.name: a.path for a in make("demo", tmp_path_factory.mktemp("every"), *RECIPES)}


def test_every_artefact_has_the_listed_size_and_verifies(every_demo):
    demo = open_checkpoint("demo")
    expected = listed("demo")
    assert list(expected) == list(RECIPES)
    for name, path in every_demo.items():
        error = 0.02 if expected[name].estimated else 0
        size = pytest.approx(expected[name].weight_bytes, rel=error, abs=0)
        assert tensor_bytes(path) == size, name
        bits = pytest.approx(expected[name].bits_per_weight, rel=error, abs=0)
        assert bits_per_weight(path, demo.parameters) == bits, name
        assert verify(path, demo, lambda *_: None).problems == (), name


def test_every_artefact_computes_about_the_same(every_demo):
    expected = edge_logits(every_demo["mlx-fp16"])
    for name, path in every_demo.items():
        logits = edge_logits(path) if path.is_dir() else llama_logits(path)
        likeness = np.corrcoef(logits.ravel(), expected.ravel())[0, 1]
        few = any(mark in name for mark in ("int2", "int3", "_2_6", "_3_", "q2", "q3"))
        assert likeness > (0.3 if few else 0.9), (name, likeness)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("raw", [CONFIGS["tied"], CONFIGS["stablelm-2-12b"], ODD])
def test_sizes_of_unusual_shapes_and_groups(tmp_path, raw, group_size):
    source = write_checkpoint(tmp_path / "source", raw)
    names = ("mlx-int4", "mlx-mixed_3_4", "gguf-bf16")
    expected = listed(source, group_size=group_size)
    for made in make(source, tmp_path / "out", *names, group_size=group_size):
        assert tensor_bytes(made.path) == expected[made.recipe.name].weight_bytes, made.path
        assert made.recipe.group_size == (group_size if made.recipe.is_mlx else None)


def test_the_published_model_has_its_known_sizes():
    rows = listed("synthetic:stable-code-3b")
    assert rows["mlx-fp16"].weight_bytes == 2 * 2_795_443_200
    # MLX, and what llama.cpp makes of it.
    real = {"q8_0": 8.50, "q6_k": 6.57, "q5_k_m": 5.70, "q5_k_s": 5.55, "q5_1": 6.03, "q5_0": 5.55,
            "q4_k_m": 4.88, "q4_1": 5.08, "q4_0": 4.60, "q3_k_m": 3.98, "q2_k": 3.10}  # fmt: skip
    for name, expected in {f"gguf-{k}": v for k, v in real.items()}.items():
        assert rows[name].bits_per_weight == pytest.approx(expected, rel=0.02), name
    for bits in (8, 6, 5, 4, 3, 2):
        assert rows[f"mlx-int{bits}"].bits_per_weight == pytest.approx(bits + 0.5, abs=0.005)

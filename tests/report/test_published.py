"""Table 11 and other published figures, and measured ones beside them."""

import pytest

from edge.convert.artefacts.recipes import RECIPES, TABLE_11
from edge.convert.checkpoint import open_checkpoint
from edge.convert.targets import planned_bytes
from edge.profile.profile import ModelInfo
from edge.report.published import (
    is_published_model,
    table11,
    table11_beside,
    table11_rows,
)
from tests.support.profiles import ROOT, make_profile, typed


@pytest.mark.parametrize("name", ["table11", "apple_silicon", "chips"])
def test_shared_copies_are_those_of_the_package(name):
    """If they are not: copy edge/data/NAME.json to profiles/published/."""
    inside, shown = ROOT / "edge" / "data", ROOT / "profiles" / "published"
    assert (inside / f"{name}.json").read_bytes() == (shown / f"{name}.json").read_bytes()


def test_published_rows_are_those_of_the_suite():
    """A token reads all tensors but the embedding table, which holds 2 to 6 % of the weights."""
    checkpoint = open_checkpoint("synthetic:stable-code-3b")
    assert checkpoint.parameters == table11()["model"]["parameters"]
    assert tuple(r.artefact for r in table11_rows()) == TABLE_11
    for published in table11_rows():
        recipe = RECIPES[published.artefact]
        assert (recipe.framework, recipe.precision) == (published.framework, published.precision)
        assert 0.94 < published.bytes_per_token / planned_bytes(checkpoint, recipe) < 0.98


@pytest.mark.parametrize(
    ("name", "parameters", "is_published"),
    [
        ("synthetic-stable-code-3b", 2_795_443_200, True),
        ("stablelm-3b-4e1t", 2_795_443_200, False),
        ("stable-code-3b", 5_500_000, False),
    ],
)
def test_table_11_applies_to_one_model(name, parameters, is_published):
    assert is_published_model(ModelInfo(name, parameters=parameters)) == is_published


@pytest.fixture
def data():
    """A peer, a row that counts and an INVALID one."""
    made = make_profile(artefacts=("mlx-int4", "gguf-q6_k"), model="synthetic-stable-code-3b")
    ours, other = made["rows"]
    peer = {**ours, "engine": "mlx-lm"}
    ours.update(bandwidth_fraction=0.38)
    for name, value in (("decode_tok_s", 104.0), ("power_w", 26.0), ("joules_per_token", 0.25)):
        ours[name] = {**ours[name], "median": value}
    other.update(verdict="INVALID", reasons=["wrong logits"])
    made["rows"] = [peer, ours, other]
    made["model"]["synthetic"] = True
    return made


def test_measured_figures_beside_the_published(data):
    beside = table11_beside(typed(data))
    assert [[cell.text for cell in line] for line in beside.table.lines][1] == [
        *("MLX", "INT4", "52", "104", "2.00", "17", "26.0"),
        *("0.327", "0.250", "38%", "19%", "38%"),
    ]
    assert [cell.text for cell in beside.table.lines[4]].count("—") == 5
    text = " ".join(beside.notes)
    for part in (
        *("arXiv 2404.01226 (2024), Table 11, on 'M2 Pro Max'", "https://", "rough estimate"),
        *("Apple M2 Pro 204.8 GB/s, Apple M2 Max 409.6 GB/s", "computed: W / (tok/s)"),
        *("on Apple M2 Max, pp512, tg128, medians", "Our weights are random"),
        "Without a figure of ours: FP16, FP16, Q5_K_M, Q6_K",
    ):
        assert part in text
    assert "say nothing about the devices" not in text
    assert text.count("Our watts are of powermetrics (CPU, GPU and ANE;") == 1
    data["model"].update(name="demo", parameters=5_500_000, synthetic=False)
    text = " ".join(table11_beside(typed(data)).notes)
    assert "6 M weights and the published model, stable-code-3b, 2795 M" in text
    assert "random" not in text

from pathlib import Path

import pytest

from edge.convert.artefacts.recipes import RECIPES, TABLE_11
from edge.convert.artefacts.sizes import planned_bytes
from edge.convert.checkpoint import open_checkpoint
from edge.profile.published import (
    is_published_model,
    other_figures,
    table11,
    table11_beside,
    table11_rows,
)

PUBLISHED = Path(__file__).parents[2] / "profiles" / "published"


def profile(*rows, parameters=2795443200, synthetic=True):
    model = {"name": "synthetic-stable-code-3b", "parameters": parameters, "synthetic": synthetic}
    return {"model": model, "device": {"name": "Apple M2 Max"}, "rows": list(rows)}


def row(artefact, engine, rate, watts=None, share=None, verdict="VALID"):
    def quantity(value):
        return value and {"median": value, "mean": value, "sd": None, "n": 1}

    return {
        "artefact": artefact,
        "engine": engine,
        "workload": {"prompt": 512, "generate": 128, "depth": 0},
        "decode_tok_s": quantity(rate),
        "power_w": quantity(watts),
        "joules_per_token": quantity(watts and watts / rate),
        "bandwidth_fraction": share,
        "verdict": verdict,
    }


def test_the_reports_rows_are_the_suites_rows():
    assert tuple(r.artefact for r in table11_rows()) == TABLE_11
    for published in table11_rows():
        recipe = RECIPES[published.artefact]
        assert (recipe.framework, recipe.precision) == (published.framework, published.precision)


def test_what_a_token_reads_is_what_the_artefact_would_hold():
    """All of its tensors but the embedding table, which holds 2 to 6 % of the weights."""
    checkpoint = open_checkpoint("synthetic:stable-code-3b")
    assert checkpoint.parameters == table11()["model"]["parameters"]
    for published in table11_rows():
        total = planned_bytes(checkpoint, RECIPES[published.artefact])
        assert 0.94 < published.bytes_per_token / total < 0.98


def test_a_rate_is_read_against_both_chips():
    int4 = table11_rows()[1]
    assert int4.joules_per_token == pytest.approx(17 / 52)
    assert int4.share_of(204.8) == pytest.approx(52 * 1.50048 / 204.8, rel=1e-4)
    shares = [r.share_of(204.8) for r in table11_rows()]
    assert all(0 < share < 1 for share in shares)
    rates = [r.decode_tok_s * r.bytes_per_token / 1e9 for r in table11_rows()]
    assert f"{min(rates):.0f} to {max(rates):.0f} GB/s" in table11()["device"]["remark"]


def test_ours_stands_beside_the_published():
    text = table11_beside(
        profile(
            row("mlx-int4", "mlx-lm", 1.0),
            row("mlx-int4", "mlx", 104.0, watts=26.0, share=0.38),
            row("gguf-q6_k", "llama.cpp", 99.0, verdict="INVALID"),
        )
    )
    lines = text.splitlines()
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells == [
        "MLX", "INT4", "52", "104", "2.00", "17", "26", "0.327", "0.25", "38%", "19%", "38%",
    ]  # fmt: skip
    assert lines[6].count("—") == 5
    assert len({len(line) for line in lines if line.startswith("|")}) == 1
    for part in (
        "arXiv 2404.01226 (2024), Table 11, on 'M2 Pro Max'",
        "rough estimate",
        "computed: W / (tok/s)",
        "Apple M2 Pro 204.8 GB/s, Apple M2 Max 409.6 GB/s",
        "on Apple M2 Max, tg128, medians",
        "random",
        "Without a figure of ours: FP16, FP16, Q5_K_M, Q6_K",
    ):
        assert part in text
    assert "say nothing about the devices" not in text


def test_whose_watts_ours_are_is_said_once():
    rows = [row("mlx-int4", "mlx", 104.0, watts=26.0), row("gguf-q6_k", "llama.cpp", 99.0, 20.0)]
    assert "Our watts" not in table11_beside(profile(*rows))
    power = {"source": "powermetrics stand-in", "boundary": "CPU + GPU", "flags": []}
    text = table11_beside(profile(*({**r, "power": power} for r in rows)))
    assert text.count("Our watts are of powermetrics stand-in (CPU + GPU).") == 1


def test_another_model_is_named_as_such():
    text = table11_beside(profile(parameters=5_500_000, synthetic=False))
    assert "6 M weights and the published model, stable-code-3b, 2795 M" in text
    assert "random" not in text


@pytest.mark.parametrize(
    ("name", "parameters", "same"),
    [
        ("stable-code-3b", 2_795_443_200, True),
        ("synthetic-stable-code-3b", 2_795_443_200, True),
        ("stablelm-3b-4e1t", 2_795_443_200, False),
        ("stable-code-3b", 5_500_000, False),
    ],
)
def test_table_11_is_of_one_model(name, parameters, same):
    assert is_published_model({"name": name, "parameters": parameters}) is same


def test_other_figures_have_sources():
    for figure in other_figures()["rows"]:
        assert figure["source"] and figure["decode_tok_s"] > 0


@pytest.mark.parametrize("name", ["table11.json", "apple_silicon.json"])
def test_people_find_the_data_where_profiles_are(name):
    import edge.bench

    packaged = Path(edge.bench.__file__).parent / "data" / name
    assert (PUBLISHED / name).read_bytes() == packaged.read_bytes()

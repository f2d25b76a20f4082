import pytest

from edge.convert.artefacts.recipes import RECIPES, TABLE_11
from edge.convert.artefacts.sizes import planned_bytes
from edge.convert.checkpoint import open_checkpoint
from edge.profile.profile import ModelInfo
from edge.profile.published import (
    is_published_model,
    other_figures,
    table11,
    table11_rows,
)


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
    assert is_published_model(ModelInfo(name, parameters=parameters)) is same


def test_other_figures_have_sources():
    for figure in other_figures()["rows"]:
        assert figure["source"] and figure["decode_tok_s"] > 0

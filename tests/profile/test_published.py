import pytest

from edge.convert.artefacts.recipes import RECIPES, TABLE_11
from edge.convert.artefacts.sizes import planned_bytes
from edge.convert.checkpoint import open_checkpoint
from edge.profile.profile import ModelInfo
from edge.profile.published import is_published_model, other_figures, table11, table11_rows


def test_published_rows_are_the_suites_rows():
    """A token reads all tensors but the embedding table, which holds 2 to 6 % of the weights."""
    checkpoint = open_checkpoint("synthetic:stable-code-3b")
    assert checkpoint.parameters == table11()["model"]["parameters"]
    assert tuple(r.artefact for r in table11_rows()) == TABLE_11
    for published in table11_rows():
        recipe = RECIPES[published.artefact]
        assert (recipe.framework, recipe.precision) == (published.framework, published.precision)
        assert 0.94 < published.bytes_per_token / planned_bytes(checkpoint, recipe) < 0.98


def test_a_rate_is_a_share_of_a_chips_ceiling():
    int4 = table11_rows()[1]
    assert int4.joules_per_token == pytest.approx(17 / 52)
    assert int4.share_of(204.8) == pytest.approx(52 * 1.50048 / 204.8, rel=1e-4)
    rates = [r.decode_tok_s * r.bytes_per_token / 1e9 for r in table11_rows()]
    assert f"{min(rates):.0f} to {max(rates):.0f} GB/s" in table11()["device"]["remark"]


def test_table_11_is_of_one_model():
    parameters = 2_795_443_200
    assert is_published_model(ModelInfo("synthetic-stable-code-3b", parameters=parameters))
    assert not is_published_model(ModelInfo("stablelm-3b-4e1t", parameters=parameters))
    assert not is_published_model(ModelInfo("stable-code-3b", parameters=5_500_000))


def test_other_figures_have_sources():
    for figure in other_figures()["rows"]:
        assert figure["source"] and figure["decode_tok_s"] > 0

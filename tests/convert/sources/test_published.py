"""The published shapes have the published sizes, and contradictions are noticed."""

from dataclasses import replace

import pytest

from edge.convert.sources.published import SHAPES, doubts_about
from edge.model.tensors import parameter_count

# As the hub counts the tensors of each checkpoint.
PARAMETERS = {
    "stable-code-3b": 2_795_443_200,
    "stablelm-3b-4e1t": 2_795_443_200,
    "stablelm-2-1_6b": 1_644_515_328,
    "stablelm-2-12b": 12_143_185_920,
}
STABLE_CODE = SHAPES["stable-code-3b"]


def test_every_shape_has_the_published_number_of_weights_and_no_doubts():
    assert {name: parameter_count(config) for name, config in SHAPES.items()} == PARAMETERS
    assert not any(doubts_about(config, name) for name, config in SHAPES.items())


@pytest.mark.parametrize(
    "name", ["stabilityai/stable-code-3b", "Stable Code 3B", "stable_code", "STABLECODE.gguf"]
)
def test_stable_code_with_the_old_base_is_doubted_by_any_name(name):
    old = replace(STABLE_CODE, rope_theta=10000.0, max_position_embeddings=4096)
    theta, context = doubts_about(old, None, name)
    assert "rope_theta is 10000" in theta
    assert "--rope-theta 1000000" in theta
    assert "--context 16384" in context
    theta, _ = doubts_about(old, name, gives_base=False)
    assert "gives no rotary base" in theta


def test_its_context_alone_gives_it_away():
    (doubt,) = doubts_about(replace(STABLE_CODE, rope_theta=10000.0), "model", None)
    assert "rope_theta is 10000" in doubt


def test_other_models_of_the_old_base_are_left_alone():
    assert doubts_about(SHAPES["stablelm-3b-4e1t"], "stablelm-3b-4e1t", "code-stable") == []
    assert doubts_about(replace(STABLE_CODE, rope_theta=20000.0), "stable-code") == []

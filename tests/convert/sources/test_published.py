"""Shapes of the published models, and warnings about configs of Stable Code."""

from dataclasses import replace

import pytest

from edge.convert.sources.published import SHAPES, config_warnings
from edge.model.tensors import parameter_count

# As the hub counts the tensors of each checkpoint.
PARAMETERS = {
    "stable-code-3b": 2_795_443_200,
    "stablelm-3b-4e1t": 2_795_443_200,
    "stablelm-2-1_6b": 1_644_515_328,
    "stablelm-2-12b": 12_143_185_920,
}


def test_every_shape_has_the_published_number_of_weights_and_no_warning():
    assert {name: parameter_count(config) for name, config in SHAPES.items()} == PARAMETERS
    assert not any(config_warnings(config, name) for name, config in SHAPES.items())


@pytest.mark.parametrize(
    ("base", "context", "name", "words"),
    [
        (1e4, 4096, "stabilityai/stable-code-3b", ("--rope-theta 1000000", "--context 16384")),
        (1e4, 4096, "STABLECODE.gguf", ("rope_theta is 10000", "--context 16384")),
        (1e4, 4096, "code-stable", ()),
        (2e4, 16384, "stable_code", ()),
    ],
)
def test_stable_code_with_another_base_or_context_gives_a_warning(base, context, name, words):
    config = replace(SHAPES["stable-code-3b"], rope_theta=base, max_position_embeddings=context)
    warnings = config_warnings(config, None, name)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))

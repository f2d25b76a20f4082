"""The published shapes have the published sizes, and contradictions are noticed."""

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
STABLE_CODE = SHAPES["stable-code-3b"]


def test_every_shape_has_the_published_number_of_weights_and_no_doubts():
    assert {name: parameter_count(config) for name, config in SHAPES.items()} == PARAMETERS
    assert not any(config_warnings(config, name) for name, config in SHAPES.items())


@pytest.mark.parametrize(
    ("base", "context", "name", "words"),
    [
        (1e4, 4096, "stabilityai/stable-code-3b", ("--rope-theta 1000000", "--context 16384")),
        (1e4, 4096, "Stable Code 3B", ("rope_theta is 10000", "--context 16384")),
        (1e4, 4096, "STABLECODE.gguf", ("rope_theta is 10000", "--context 16384")),
        (1e4, 16384, "model", ("rope_theta is 10000",)),
        (1e4, 4096, "code-stable", ()),
        (2e4, 16384, "stable_code", ()),
    ],
)
def test_stable_code_with_the_old_base_is_doubted(base, context, name, words):
    config = replace(STABLE_CODE, rope_theta=base, max_position_embeddings=context)
    doubts = config_warnings(config, None, name)
    assert len(doubts) == len(words)
    assert all(word in doubt for word, doubt in zip(words, doubts, strict=True))

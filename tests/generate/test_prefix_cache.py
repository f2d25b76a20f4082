"""What is kept of one prompt for the next."""

import mlx.core as mx
import pytest

from edge.generate.decode import generate_tokens
from edge.generate.prefix_cache import PrefixCache, common_length
from edge.model.kv_cache import make_cache
from edge.model.load import load_model
from tests.support.tiny import PLAIN, write_checkpoint

PROMPT = [5, 9, 12, 7, 30, 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "plain"
    return load_model(write_checkpoint(path, {**PLAIN, "num_hidden_layers": 1}), mx.float32)


def generate(model, cache, ids, count=3, fresh=1):
    reused = cache.reuse(ids, fresh)
    with cache.feeding(ids) as fed:
        for token in generate_tokens(model, ids[reused:], cache=cache.layers, max_tokens=count):
            fed.append(token)
    return reused, fed[len(ids) :]


def test_the_common_beginning_is_reused_and_the_rest_is_right(model):
    cache = PrefixCache(lambda: make_cache(model))
    _, first = generate(model, cache, PROMPT)
    assert cache.held == (*PROMPT, *first[:-1])
    for prompt in ([*PROMPT, *first, 8], PROMPT, [*PROMPT[:3], 77], [1]):
        common = common_length(cache.held, prompt[:-1])
        reused, made = generate(model, cache, prompt)
        assert reused == common
        assert made == list(generate_tokens(model, prompt, max_tokens=3))
    assert reused == 0


def test_as_many_of_the_last_ids_as_wanted_are_computed(model):
    cache = PrefixCache(lambda: make_cache(model))
    generate(model, cache, PROMPT)
    assert generate(model, cache, PROMPT, fresh=4)[0] == len(PROMPT) - 4
    assert generate(model, cache, PROMPT, fresh=99)[0] == 0


def test_what_an_error_leaves_is_known(model):
    cache = PrefixCache(lambda: make_cache(model))
    with pytest.raises(KeyError), cache.feeding(PROMPT) as fed:
        for token in generate_tokens(model, PROMPT, cache=cache.layers):
            fed.append(token)
            if len(fed) == 8:
                raise KeyError
    assert cache.held == tuple(fed) and cache.layers[0].offset == 8


def test_layers_of_different_length_are_given_up(model):
    cache = PrefixCache(lambda: make_cache(model) + make_cache(model))
    with cache.feeding(PROMPT):
        model.model(mx.array([PROMPT]), cache.layers[:1])
    assert cache.held == ()
    assert [layer.offset for layer in cache.layers] == [0, 0]


def test_common_length():
    assert [common_length(a, b) for a, b in (("", "a"), ("ab", "ab"), ("abc", "abd"))] == [0, 2, 2]

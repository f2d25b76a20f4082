"""Sources of tokens: what is kept of one prompt for the next, on MLX and on llama.cpp."""

import contextlib

import mlx.core as mx
import pytest

from edge.generate.decode import LlamaSource, MlxSource, PrefixCache, common_length, generate_tokens
from edge.generate.sampling import GREEDY, Sampling
from edge.model.kv_cache import make_cache
from tests.support.conversions import exact_session

CONTEXT = 256
SAMPLED = Sampling(temperature=1.0, top_k=20, seed=5)
PENALISED = Sampling(repetition_penalty=1.3, repetition_context=8)


@pytest.fixture(scope="module")
def session(demo_out):
    # In full precision on both sides: the logits agree to rounding.
    with contextlib.closing(exact_session(demo_out / "gguf-f32.gguf", CONTEXT, 1)) as session:
        yield session


@pytest.fixture(params=["mlx", "llama"])
def source(request, loaded):
    if request.param == "mlx":
        return MlxSource(loaded[0], context_tokens=CONTEXT)
    source = LlamaSource(request.getfixturevalue("session"), CONTEXT)
    source.reset()
    return source


@pytest.fixture(scope="module")
def ids(loaded):
    return loaded[1].encode("import os\n\n\ndef walk(path):\n    for name in ")


def held(source):
    return source.held if isinstance(source, LlamaSource) else source.cache.held


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, PENALISED])
def test_the_tokens_are_those_of_a_plain_generation(source, loaded, ids, sampling):
    reused, tokens = source.generate(ids, 12, sampling)
    made = list(tokens)
    assert reused == 0
    assert made == list(generate_tokens(loaded[0], ids, max_tokens=12, sampling=sampling))
    assert held(source) == [*ids, *made[:-1]]


def test_the_next_prompt_pays_for_what_differs(source, ids):
    first = list(source.generate(ids, 6, GREEDY)[1])
    for prompt in ([*ids, *first, 11], ids, [*ids[:7], 33, 34], ids):
        common = common_length(held(source), prompt[:-1])
        reused, tokens = source.generate(prompt, 6, GREEDY)
        assert reused == common
        again = list(tokens)
        source.reset()
        assert held(source) == []
        assert list(source.generate(prompt, 6, GREEDY)[1]) == again
    assert again == first


def test_a_penalty_sees_the_end_of_the_prompt_again(source, ids):
    first = list(source.generate(ids, 5, PENALISED)[1])
    reused, tokens = source.generate(ids, 5, PENALISED)
    assert reused == len(ids) - PENALISED.repetition_context
    assert list(tokens) == first


def test_a_closed_generation_knows_what_it_holds(source, ids):
    first = list(source.generate(ids, 4, GREEDY)[1])
    tokens = source.generate(ids[:-3], 9, GREEDY)[1]
    made = [next(tokens), next(tokens)]
    tokens.close()
    ahead = isinstance(source, MlxSource)
    assert held(source) == [*ids[:-3], *made][: None if ahead else -1]
    assert list(source.generate(ids, 4, GREEDY)[1]) == first


def test_layers_of_different_length_are_given_up(loaded, ids):
    model = loaded[0]
    cache = PrefixCache(lambda: make_cache(model))
    with cache.feeding(ids):
        cache.layers[0].update_and_fetch(mx.zeros((1, 1, 2, 4)), mx.zeros((1, 1, 2, 4)))
    assert cache.held == [] and {layer.offset for layer in cache.layers} == {0}

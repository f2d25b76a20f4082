"""The loop's tokens are mlx-lm's and those without a cache; sources know what their cache holds."""

import contextlib
import itertools

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors
from mlx_lm.utils import load_model as load_peer

from edge.errors import EdgeError
from edge.generate import decode
from edge.generate.decode import LlamaSource, MlxSource, generate_tokens
from edge.generate.sampling import GREEDY, Sampling
from tests.support.conversions import exact_session
from tests.support.talk import offsets, tokens

PROMPTS = [
    "    for i in range(10):\n        print(",
    "import os\nimport sys\n\n\nclass Reader:\n    def __init__(self, path):\n",
    "x",
]
TOKENS, CONTEXT = 72, 256
SAMPLED = Sampling(temperature=1.0, top_k=20, seed=5)
PENALISED = Sampling(repetition_penalty=1.3, repetition_context=8)


@pytest.fixture(scope="module")
def model(loaded):
    loaded[0].set_dtype(mx.float32)
    return loaded[0]


@pytest.fixture(scope="module")
def peer(demo_out):
    model, _ = load_peer(demo_out / "mlx-fp16")
    model.set_dtype(mx.float32)
    return model


@pytest.fixture(scope="module")
def prompt(loaded):
    return loaded[1].encode(PROMPTS[1])


def peer_tokens(peer, ids, **options):
    steps = generate_step(mx.array(ids), peer, max_tokens=TOKENS, **options)
    return [token for token, _ in steps]


def tokens_without_cache(model, ids, count):
    text = list(ids)
    for _ in range(count):
        text.append(int(mx.argmax(model(mx.array([text]))[0, -1]).item()))
    return text[len(ids) :]


@pytest.mark.parametrize("text", PROMPTS, ids=range(len(PROMPTS)))
def test_tokens_are_mlx_lms(loaded, model, peer, text):
    ids = loaded[1].encode(text)
    greedy = tokens(model, ids, max_tokens=TOKENS)
    assert greedy == peer_tokens(peer, ids)
    for context in (4, 20, 200):
        how = {"repetition_penalty": 1.5, "repetition_context_size": context}
        sampling = Sampling(repetition_penalty=1.5, repetition_context=context)
        found = tokens(model, ids, max_tokens=TOKENS, sampling=sampling)
        assert found == peer_tokens(peer, ids, logits_processors=make_logits_processors(**how))
        assert context < 200 or found != greedy  # the penalty does something


@pytest.mark.parametrize(("step", "length"), [(1, 9), (5, 28), (64, 70), (64, 120)])
def test_prefill_in_parts_changes_nothing(model, prompt, step, length):
    prompt, seen = (prompt * 9)[:length], []
    expected = [(p.stop, length) for p in decode.prefill_parts(length, step, len(model.layers))]
    plain = tokens_without_cache(model, prompt, 6)
    for count in (0, 1, 6):
        cache = make_prompt_cache(model)
        how = {"max_tokens": count, "cache": cache, "on_prefill": lambda *done: seen.append(done)}
        assert tokens(model, prompt, prefill_tokens=step, **how) == plain[:count]
        assert offsets(cache) == {length + max(count - 1, 0)}
    assert seen == expected * 3


@pytest.mark.parametrize("calls_before", [0, 1, 2, 7])
def test_an_interrupt_leaves_all_layers_at_the_same_length(
    model, prompt, monkeypatch, calls_before
):
    expected, cache = tokens(model, prompt, max_tokens=20), make_prompt_cache(model)
    block = type(model.layers[2])
    call, calls = block.__call__, itertools.count()

    def interrupted(self, *args):
        if self is model.layers[2] and next(calls) == calls_before:
            raise KeyboardInterrupt
        return call(self, *args)

    found = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(block, "__call__", interrupted)
        for token in generate_tokens(model, prompt, cache=cache, max_tokens=20):
            found.append(token)
    (length,) = offsets(cache)
    # The prompt is computed in two parts, the last position apart; then one token per call.
    assert length == {0: 0, 1: len(prompt) - 1}.get(calls_before, len(prompt) + len(found))
    for layer in cache:
        layer.trim(min(1, length))  # so that there is a token to go on with
    again = (prompt + found)[cache[0].offset :]
    assert found + tokens(model, again, cache=cache, max_tokens=20 - len(found)) == expected


def test_a_prompt_that_fills_the_context_is_refused(model, shorten, prompt):
    shorten(model, 64)
    full = (prompt * 9)[:64]
    with pytest.raises(EdgeError, match=r"has 64 tokens and .* ends at 64, .* by 1 or more"):
        generate_tokens(model, full)
    cache = make_prompt_cache(model)
    tokens(model, full[:50], cache=cache, max_tokens=0)
    with pytest.raises(EdgeError, match=r"has 30 tokens after 50 .* cache .* at 64, .* by 17 "):
        generate_tokens(model, full[:30], cache=cache)
    assert offsets(cache) == {50}


def test_a_rotating_cache_goes_on_beyond_the_context(model, shorten, prompt):
    shorten(model, 64)
    cache = [RotatingKVCache(max_size=32, keep=4) for _ in model.layers]
    assert len(tokens(model, (prompt * 9)[:60], cache=cache, max_tokens=10)) == 10
    assert offsets(cache) == {69}


@pytest.mark.parametrize(
    ("ids", "options", "sentence"),
    [
        ([], {}, "the prompt has no tokens; "),
        ([1, 4096], {}, "the token 4096 and the model's vocabulary ends at 4095; leave"),
        ([1], {"max_tokens": -1}, "max_tokens is -1; choose 0 or more"),
    ],
)
def test_the_call_itself_refuses_bad_arguments(model, ids, options, sentence):
    with pytest.raises(EdgeError, match=sentence):
        generate_tokens(model, ids, **options)


@pytest.fixture(scope="module")
def session(demo_out):
    # In full precision on both sides, so that the logits agree to rounding.
    with contextlib.closing(exact_session(demo_out / "gguf-f32.gguf", CONTEXT, 1)) as session:
        yield session


@pytest.fixture(params=["mlx", "llama"])
def source(request, model):
    if request.param == "mlx":
        return MlxSource(model, context_tokens=CONTEXT)
    source = LlamaSource(request.getfixturevalue("session"), CONTEXT)
    source.reset()
    return source


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, PENALISED])
def test_a_source_gives_the_loops_tokens(source, model, prompt, sampling):
    reused, tokens = source.generate(prompt, 12, sampling)
    made = list(tokens)
    assert reused == 0
    assert made == list(generate_tokens(model, prompt, max_tokens=12, sampling=sampling))
    assert source.held == [*prompt, *made[:-1]]


def test_the_next_prompt_is_computed_from_the_first_difference(source, prompt):
    first = list(source.generate(prompt, 6, GREEDY)[1])
    for ids in ([*prompt, *first, 11], prompt, [*prompt[:7], 33, 34], prompt):
        common = decode.common_length(source.held, ids[:-1])
        reused, tokens = source.generate(ids, 6, GREEDY)
        assert reused == common
        again = list(tokens)
        source.reset()
        assert source.held == []
        assert list(source.generate(ids, 6, GREEDY)[1]) == again
    assert again == first


def test_a_penalty_computes_its_context_again(source, prompt):
    first = list(source.generate(prompt, 5, PENALISED)[1])
    reused, tokens = source.generate(prompt, 5, PENALISED)
    assert reused == len(prompt) - PENALISED.repetition_context
    assert list(tokens) == first


def test_the_cache_is_known_after_a_closed_generation(source, prompt):
    first = list(source.generate(prompt, 4, GREEDY)[1])
    tokens = source.generate(prompt[:-3], 9, GREEDY)[1]
    made = [next(tokens), next(tokens)]
    tokens.close()
    ahead = isinstance(source, MlxSource)
    assert source.held == [*prompt[:-3], *made][: None if ahead else -1]
    assert list(source.generate(prompt, 4, GREEDY)[1]) == first


def test_layers_of_different_lengths_are_cleared(model, prompt):
    source = MlxSource(model)
    tokens = source.generate(prompt, 9, GREEDY)[1]
    next(tokens)
    source._cache[0].trim(1)
    source._cache[1].is_trimmable = lambda: False
    tokens.close()
    assert source.held == [] and offsets(source._cache) == {0}

"""llama.cpp as a source of tokens, beside MLX with the same weights."""

import contextlib

import pytest

import edge
from edge.generate.decode import generate_tokens
from edge.generate.fim import Infiller
from edge.generate.llama_source import LlamaSource
from edge.generate.sampling import GREEDY, Sampling
from edge.generate.token_source import MlxSource
from edge.llama_cpp.session import LlamaSession

CONTEXT = 256
SAMPLED = Sampling(temperature=1.0, top_k=20, seed=5)
PENALISED = Sampling(repetition_penalty=1.3, repetition_context=8)


@pytest.fixture(scope="module")
def loaded(demo_out):
    return edge.load(demo_out / "mlx-fp16")


@pytest.fixture(scope="module")
def session(demo_out):
    # In full precision on both sides: the logits agree to rounding.
    session = LlamaSession(
        demo_out / "gguf-f32.gguf", CONTEXT, threads=1, kv_type="f32", flash_attention=False
    )
    with contextlib.closing(session):
        yield session


@pytest.fixture
def source(session):
    source = LlamaSource(session, CONTEXT)
    source.forget()
    return source


@pytest.fixture
def ids(loaded):
    return loaded[1].encode("import os\n\n\ndef walk(path):\n    for name in ")


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, PENALISED])
def test_the_tokens_are_those_of_mlx(source, loaded, ids, sampling):
    reused, tokens = source.follow(ids, 12, sampling)
    assert reused == 0
    expected = generate_tokens(loaded[0], ids, max_tokens=12, sampling=sampling)
    made = list(tokens)
    assert made == list(expected)
    assert source.held == (*ids, *made[:-1])


def test_the_next_prompt_pays_for_what_differs(source, ids):
    first = list(source.follow(ids, 6, GREEDY)[1])
    for prompt in ([*ids, *first, 11], ids, [*ids[:7], 33, 34], ids):
        held = source.held
        reused, tokens = source.follow(prompt, 6, GREEDY)
        assert reused == next(
            (i for i, (a, b) in enumerate(zip(held, prompt[:-1], strict=False)) if a != b),
            min(len(held), len(prompt) - 1),
        )
        again = list(tokens)
        source.forget()
        assert list(source.follow(prompt, 6, GREEDY)[1]) == again
    assert again == first


def test_a_penalty_sees_the_end_of_the_prompt_again(source, ids):
    first = list(source.follow(ids, 5, PENALISED)[1])
    reused, tokens = source.follow(ids, 5, PENALISED)
    assert reused == len(ids) - PENALISED.repetition_context
    assert list(tokens) == first


def test_one_that_is_closed_knows_what_it_holds(source, ids):
    first = list(source.follow(ids, 4, GREEDY)[1])
    tokens = source.follow(ids[:-3], 9, GREEDY)[1]
    next(tokens), next(tokens)
    tokens.close()
    assert len(source.held) == len(ids) - 3 + 1
    assert list(source.follow(ids, 4, GREEDY)[1]) == first


def test_after_an_interrupt_everything_is_computed_again(source, session, ids, monkeypatch):
    first = list(source.follow(ids, 4, GREEDY)[1])
    decode = session.decode

    def interrupted(part):
        decode(part)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(source.follow([*ids, 5, 6], 4, GREEDY)[1])
    assert source.held == ()
    reused, tokens = source.follow(ids, 4, GREEDY)
    assert (reused, list(tokens)) == (0, first)


def test_a_middle_is_the_same_on_both(source, loaded):
    hole = ("import os\r\n\r\ndef f(path):\r\n    ", "\r\n    return x\r\n")
    theirs = Infiller(source, loaded[1]).complete(*hole, max_tokens=24)
    ours = Infiller(MlxSource(loaded[0], context_tokens=CONTEXT), loaded[1]).complete(
        *hole, max_tokens=24
    )
    for name in ("text", "stopped_by", "prompt_tokens", "generated_tokens"):
        assert getattr(theirs, name) == getattr(ours, name)


def test_forgetting_is_complete(loaded):
    infiller = Infiller(MlxSource(loaded[0]), loaded[1])
    infiller.complete("import ", "\n", max_tokens=4)
    infiller.forget()
    assert infiller.complete("import ", "\n", max_tokens=4).reused_tokens == 0


def test_a_source_may_use_less_than_the_model_has(loaded, held_out_text):
    source = MlxSource(loaded[0], context_tokens=100)
    done = Infiller(source, loaded[1]).complete(held_out_text, held_out_text, max_tokens=8)
    assert 60 < done.prompt_tokens <= 92
    assert MlxSource(loaded[0], context_tokens=10**6).context_tokens == 1024

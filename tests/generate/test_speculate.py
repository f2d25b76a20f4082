"""Speculation changes no text: greedy, seeded, penalised, wherever it ends."""

import contextlib
import dataclasses
import inspect
import itertools
import json
import os
import random
import textwrap

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import RotatingKVCache

import edge
from edge.generate import sampling as sampling_module
from edge.generate.decode import generate_tokens
from edge.generate.lookup import PromptLookup
from edge.generate.sampling import Sampling, certain
from edge.generate.speculate import Pace, agreed
from edge.generate.stop import stop_ids
from edge.generate.stream import stream_generate
from edge.model.kv_cache import make_cache
from tests.support.drafters import Oracle, Wrong, both, tiny
from tests.support.tiny import LLAMA, PLAIN

# Hundreds of prompts take minutes: EDGE_SPECULATION_CASES=200 for 330 of each artefact.
CASES = int(os.environ.get("EDGE_SPECULATION_CASES", "9"))
SOURCES = [inspect.getsource(module) for module in (textwrap, contextlib, json.encoder)]


def lookup():
    return PromptLookup(pace=Pace(fixed=4))


@pytest.fixture(scope="module")
def loaded(demo_out):
    return edge.load(demo_out / "mlx-fp16")


@pytest.fixture(scope="module")
def model(loaded):
    return loaded[0]


@pytest.fixture(scope="module")
def prompt(loaded):
    return loaded[1].encode("    for i in range(10):\n        print(")


@pytest.fixture(scope="module")
def small():
    return tiny(PLAIN)


def code_prompts(tokenizer, count, length):
    """Pieces of the standard library, from a place on that differs."""
    texts = [list(tokenizer.encode(source)) for source in SOURCES]
    rng = random.Random(4)
    for _ in range(count):
        text = rng.choice(texts)
        begin = rng.randrange(len(text) - length)
        yield text[begin : begin + length]


@pytest.mark.parametrize("name", ["mlx-fp16", "mlx-int4"])
def test_greedy_text_of_the_demo_is_the_plain_one(demo_out, name):
    model, tokenizer = edge.load(demo_out / name)
    draft, accepted = lookup(), 0
    rng = random.Random(5)
    prompts = [
        *code_prompts(tokenizer, CASES, 24),
        *([rng.randrange(4096) for _ in range(12)] for _ in range(CASES // 3)),
        *([rng.randrange(4096) for _ in range(4)] * 4 for _ in range(CASES // 3)),
    ]
    for ids in prompts:
        plain, found = both(model, ids, draft, max_tokens=16)
        assert found == plain
        accepted += draft.pace.accepted
    assert accepted > CASES


@pytest.mark.parametrize("raw", [PLAIN, LLAMA], ids=["stablelm", "llama"])
def test_greedy_text_of_tiny_models_is_the_plain_one(raw):
    """Random networks, whose texts soon turn in circles; right proposals and wrong ones."""
    rng = random.Random(6)
    accepted = 0
    for case in range(60):
        if case % 15 == 0:
            model, drafts = tiny(raw, seed=case), [lookup(), Wrong(pace=Pace(fixed=3))]
        ids = [rng.randrange(160) for _ in range(rng.randrange(1, 30))]
        count = rng.randrange(1, 24)
        plain = list(generate_tokens(model, ids, max_tokens=count))
        for draft in drafts:
            assert list(generate_tokens(model, ids, max_tokens=count, draft=draft)) == plain
        assert len(plain) == count
        accepted += drafts[0].pace.accepted
        assert drafts[1].pace.accepted <= drafts[1].pace.drafted
    assert accepted > 20


@pytest.mark.parametrize("kv_bits", [8, 4])
def test_quantised_caches_are_trimmed_like_others(small, kv_bits):
    ids = [5, 6, 7, 8] * 4
    plain = list(generate_tokens(small, ids, cache=make_cache(small, kv_bits), max_tokens=40))
    draft = Oracle(len(ids), plain, wrong_every=7)
    cache = make_cache(small, kv_bits)
    found = list(generate_tokens(small, ids, cache=cache, max_tokens=40, draft=draft))
    assert found == plain and draft.pace.accepted > 15
    assert {layer.offset for layer in cache} == {len(ids) + 39}


SAMPLINGS = [
    Sampling(0.8, seed=3),
    Sampling(0.7, top_p=0.9, top_k=40, min_p=0.02, seed=4),
    Sampling(0.9, repetition_penalty=1.2, repetition_context=7, seed=5),
    Sampling(repetition_penalty=1.3, repetition_context=9),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
@pytest.mark.parametrize("wrong_every", [2, 5, 10**9])
def test_a_seeded_text_is_the_plain_one(model, prompt, sampling, wrong_every):
    plain = list(generate_tokens(model, prompt, sampling=sampling, max_tokens=48))
    draft = Oracle(len(prompt), plain, wrong_every)
    found = list(generate_tokens(model, prompt, sampling=sampling, max_tokens=48, draft=draft))
    assert found == plain
    assert draft.pace.accepted > 48 * (0.25 if wrong_every == 2 else 0.5)
    assert draft.pace.accepted < draft.pace.drafted or wrong_every > 5


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}], ids=str)
def test_without_a_seed_mlxs_state_is_drawn_from_as_often(model, prompt, filters):
    mx.random.seed(3)
    sampling = Sampling(0.8, **filters)
    plain = list(generate_tokens(model, prompt, sampling=sampling, max_tokens=30))
    after = mx.random.uniform().item()
    mx.random.seed(3)
    draft = Oracle(len(prompt), plain, 5)
    assert list(generate_tokens(model, prompt, sampling=sampling, max_tokens=30, draft=draft)) == (
        plain
    )
    assert draft.pace.accepted > 10
    assert mx.random.uniform().item() == after


def test_draws_of_others_are_not_repeated(small):
    """A caller that draws while a pass is under way finds MLX's state where it left it."""
    sampling, drawn = Sampling(1.0), []
    mx.random.seed(1)
    draft = PromptLookup(pace=Pace(fixed=3))
    for _ in generate_tokens(small, [3, 4] * 5, sampling=sampling, max_tokens=40, draft=draft):
        drawn.append(mx.random.uniform().item())
    assert draft.pace.drafted > 0 and len(set(drawn)) == len(drawn)


def test_the_distribution_is_the_models(small):
    """Pairs of second and third token against the exact probabilities; chi-square.

    The seeds are fixed, so the outcome is too. Kept are 3 tokens at each place.
    """
    ids, options = [9, 8, 7, 9], {"temperature": 1.5, "top_k": 3}
    scores = np.array(small(mx.array([ids]))[0, -1]).astype(float)
    first = int(scores.argmax())
    counts, trials = {}, 400
    draft = Oracle(len(ids), [first] * 20, pace=Pace(fixed=2))
    for seed in range(trials):
        sampling = Sampling(seed=seed, **options)
        tokens = generate_tokens(small, ids, sampling=sampling, max_tokens=3, draft=draft)
        found = tuple(tokens)
        counts[found[:2]] = counts.get(found[:2], 0) + 1
    expected = {}
    for a, p in kept_probabilities(small, ids).items():
        for b, q in kept_probabilities(small, [*ids, a]).items():
            expected[a, b] = p * q * trials
    assert set(counts) <= set(expected) and len(expected) == 9
    statistic = sum((counts.get(pair, 0) - e) ** 2 / e for pair, e in expected.items())
    assert statistic < 26.1  # 8 degrees of freedom; one in a thousand is above


def kept_probabilities(model, ids):
    scores = np.array(model(mx.array([ids]))[0, -1]).astype(float)
    kept = np.argsort(scores)[-3:]
    weights = np.exp((scores[kept] - scores[kept].max()) / 1.5)
    return dict(zip(kept.tolist(), (weights / weights.sum()).tolist(), strict=True))


def test_a_text_may_end_anywhere_in_an_accepted_run(small):
    """After closing, the cache holds the prompt and what was given, and can be gone on from."""
    ids = [1, 2, 3]
    plain = list(generate_tokens(small, ids, max_tokens=30))
    for end in range(1, 20):
        cache = make_cache(small)
        draft = Oracle(len(ids), plain, wrong_every=6)
        tokens = generate_tokens(small, ids, cache=cache, max_tokens=30, draft=draft)
        found = list(itertools.islice(tokens, end))
        tokens.close()
        assert {layer.offset for layer in cache} == {len(ids) + end}
        for layer in cache:
            layer.trim(1)
        rest = generate_tokens(
            small, found[-1:], cache=cache, max_tokens=30 - end, draft=lookup(), history=ids
        )
        assert found + list(rest) == plain


@pytest.mark.parametrize("count", range(12))
def test_max_tokens_is_kept_exactly_and_the_last_not_fed(small, count):
    ids = [1, 2, 3]
    plain = list(generate_tokens(small, ids, max_tokens=40))
    cache, draft = make_cache(small), Oracle(len(ids), plain)
    tokens = generate_tokens(small, ids, cache=cache, max_tokens=count, draft=draft)
    assert list(tokens) == plain[:count]
    assert {layer.offset for layer in cache} == {len(ids) + max(count - 1, 0)}


def test_the_context_ends_where_it_does_without(small, monkeypatch):
    config = dataclasses.replace(small.config, max_position_embeddings=48)
    monkeypatch.setattr(small, "config", config)
    ids = [4, 5] * 8
    plain = list(generate_tokens(small, ids))
    assert len(plain) == 32
    widest, call = [], type(small.model).__call__

    def watched(self, ids, cache):
        widest.append(cache[0].offset + ids.shape[1])
        return call(self, ids, cache)

    monkeypatch.setattr(type(small.model), "__call__", watched)
    draft = lookup()
    assert list(generate_tokens(small, ids, draft=draft)) == plain
    assert draft.pace.accepted > 0 and max(widest) <= 47


@pytest.mark.parametrize("after", range(2, 40, 3))
def test_an_interrupt_leaves_the_layers_level(small, monkeypatch, after):
    ids = [1, 2, 3]
    plain = list(generate_tokens(small, ids, max_tokens=30))
    cache, found = make_cache(small), []
    block = type(small.layers[1])
    call, calls = block.__call__, itertools.count()

    def interrupted(self, *args):
        if self is small.layers[1] and next(calls) == after:
            raise KeyboardInterrupt
        return call(self, *args)

    draft = Oracle(len(ids), plain, wrong_every=4)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(block, "__call__", interrupted)
        for token in generate_tokens(small, ids, cache=cache, max_tokens=30, draft=draft):
            found.append(token)
    (length,) = {layer.offset for layer in cache}
    assert length == len(ids) + min(len(found), 29)
    assert found == plain[: len(found)]


def test_a_rotating_cache_is_decoded_plainly(small):
    cache = [RotatingKVCache(max_size=32, keep=4) for _ in small.layers]
    draft = lookup()
    tokens = generate_tokens(small, [4, 5] * 20, cache=cache, max_tokens=20, draft=draft)
    assert len(list(tokens)) == 20
    assert (draft.pace.drafted, cache[0].offset) == (0, 59)


def noisy(model, monkeypatch, share):
    """Logits of passes over several positions as on a device that sums in another order."""
    head = type(model).head

    def rounded(self, h):
        logits = head(self, h)
        if logits.shape[1] == 1:
            return logits
        noise = mx.random.uniform(-1, 1, logits.shape, key=mx.random.key(h.shape[1]))
        return logits + noise * share * mx.abs(logits).max(axis=-1, keepdims=True)

    monkeypatch.setattr(type(model), "head", rounded)


def close_calls(monkeypatch, share):
    """Texts with and without speculation, where passes round and margins below count as close."""
    monkeypatch.setattr(sampling_module, "ROUNDING_SHARE", {mx.float32: share})
    model = tiny(PLAIN, seed=8)
    noisy(model, monkeypatch, 0.02)
    equal = []
    for case in range(8):
        ids = [case, 3, 3]
        plain = list(generate_tokens(model, ids, max_tokens=24))
        draft = Oracle(len(ids), plain)
        equal.append(plain == list(generate_tokens(model, ids, max_tokens=24, draft=draft)))
    return equal


def test_close_calls_are_left_to_a_single_step(monkeypatch):
    assert all(close_calls(monkeypatch, 0.04))


def test_close_calls_would_change_the_text(monkeypatch):
    """The test above can fail: with no margin the noise decides."""
    assert not all(close_calls(monkeypatch, 0.0))


def test_certain_is_a_margin_above_rounding():
    share = sampling_module.ROUNDING_SHARE[mx.float16]
    rows = mx.array(
        [[1.0, -16, 16], [16 - 20 * share, 16, 1], [16 - 10 * share, 16, 0], [16, 16, 0]]
    )
    assert certain(rows.astype(mx.float16)).tolist() == [True, True, False, False]
    assert certain(rows).tolist() == [True, True, True, False]


def test_agreed_is_what_a_pass_settles():
    sure = [True] * 4
    assert agreed([5, 6, 7, 8], sure, [5, 6, 7]) == [5, 6, 7, 8]
    assert agreed([5, 9, 7, 8], sure, [5, 6, 7]) == [5, 9]
    assert agreed([5, 6, 7, 8], [True, True, False, True], [5, 6, 7]) == [5, 6]
    assert agreed([5, 6], [False, True], [5]) == []


def test_events_and_counts(loaded, prompt):
    plain = list(stream_generate(*loaded, prompt, max_tokens=40))
    ids = [i for event in plain for i in event.ids]
    draft = Oracle(len(prompt), ids + [7] * 9)
    events = list(stream_generate(*loaded, prompt, max_tokens=40, draft=draft))
    assert [(e.text, e.ids, e.finish) for e in events] == [(e.text, e.ids, e.finish) for e in plain]
    stats = events[-1].stats
    assert 10 < stats.accepted_tokens <= stats.drafted_tokens
    assert (plain[-1].stats.drafted_tokens, plain[-1].stats.accepted_tokens) == (0, 0)


def test_a_stop_token_in_an_accepted_run_ends_the_text(loaded, prompt):
    """Nothing after it is in the answer, nor in the cache."""
    model, tokenizer = loaded
    plain = list(generate_tokens(model, prompt, max_tokens=20))
    stop = min(stop_ids(tokenizer))
    wanted = [*plain[:6], stop]

    class Forced(type(model)):
        def head(self, h):
            """Logits of the demo, but that the stop token follows the sixth."""
            logits = super().head(h)
            begin = self.seen
            self.seen += h.shape[1]
            return mx.concatenate(
                [
                    mx.where(mx.arange(4096) == stop, 1e4, logits[:, i : i + 1])
                    if begin + i == 6
                    else logits[:, i : i + 1]
                    for i in range(h.shape[1])
                ],
                axis=1,
            )

    forced = Forced(model.config)
    forced.update_modules({"model": model.model, "lm_head": model.lm_head})
    object.__setattr__(forced, "seen", 0)
    cache = make_cache(model)
    draft = Oracle(len(prompt), wanted + plain, pace=Pace(fixed=7))
    events = list(stream_generate(forced, tokenizer, prompt, cache=cache, draft=draft))
    assert [i for event in events for i in event.ids] == wanted
    assert events[-1].finish == "stop token"
    assert {layer.offset for layer in cache} == {len(prompt) + len(wanted)}

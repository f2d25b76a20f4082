"""Speculation does not change the text: greedy, seeded, penalised, ended anywhere."""

import itertools
import os
import random

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge
from edge.generate import sampling as sampling_module
from edge.generate import speculate
from edge.generate.decode import common_length, generate_tokens
from edge.generate.sampling import Sampling
from edge.generate.speculate import DraftLength, PromptLookup
from edge.generate.stream import stream_generate
from edge.model.kv_cache import make_cache
from tests.support.talk import ids_of, offsets, tokens
from tests.support.tiny import PLAIN, tiny_model

CASES = int(os.environ.get("EDGE_SPECULATION_CASES", "9"))


class Fixed(DraftLength):
    """Always the same number of proposals."""

    def __init__(self, proposals):
        super().__init__()
        self.proposals = proposals

    def best(self, *kinds_and_most):
        return max(min(self.proposals, most) if kind else 0 for kind, most in kinds_and_most)


class Oracle(PromptLookup):
    """Proposes a known text, with a wrong id in every so many."""

    def __init__(self, prompt_tokens, text, wrong_every=10**9):
        super().__init__()
        self.length = Fixed(5)
        self.text = [1 if i % wrong_every == wrong_every - 1 else t for i, t in enumerate(text)]
        self.prompt_tokens = prompt_tokens

    def rest(self):
        return self.text[len(self._ids) - self.prompt_tokens :]

    def kind(self):
        return int(len(self.rest()) > speculate.MOST_PROPOSED)

    def propose(self, count):
        return self.rest()[:count]


def lookup():
    draft = PromptLookup()
    draft.length = Fixed(4)
    return draft


@pytest.mark.parametrize("name", ["mlx-fp16", "mlx-int4"])
def test_greedy_text_of_the_demo(demo_out, name, held_out_text):
    model, tokenizer = edge.load(demo_out / name)
    text, draft, rng, accepted = tokenizer.encode(held_out_text), lookup(), random.Random(5), 0
    for _ in range(CASES):
        begin = rng.randrange(len(text) - 24)
        ids = text[begin : begin + 24]
        plain = tokens(model, ids, max_tokens=16)
        assert tokens(model, ids, max_tokens=16, draft=draft) == plain
        accepted += draft.accepted
    assert accepted > CASES


SAMPLINGS = [
    Sampling(0.8, seed=3),
    Sampling(0.7, top_p=0.9, top_k=40, min_p=0.02, seed=4),
    Sampling(0.9, repetition_penalty=1.2, repetition_context=7, seed=5),
    Sampling(repetition_penalty=1.3, repetition_context=9),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
@pytest.mark.parametrize("wrong_every", [2, 5, 10**9])
def test_seeded_and_penalised_text(loaded, prompt, sampling, wrong_every):
    options = {"sampling": sampling, "max_tokens": 48}
    plain = tokens(loaded[0], prompt, **options)
    draft = Oracle(len(prompt), plain, wrong_every)
    assert tokens(loaded[0], prompt, **options, draft=draft) == plain
    assert draft.accepted > 48 * (0.25 if wrong_every == 2 else 0.5)
    assert draft.accepted < draft.drafted or wrong_every > 5


def test_the_cache_can_be_continued_wherever_the_text_ends():
    small, ids = tiny_model(PLAIN), [1, 2, 3]
    plain = tokens(small, ids, max_tokens=40)
    for end in range(20):
        draft = Oracle(len(ids), plain, wrong_every=6)
        limited, cache = make_cache(small), make_cache(small)
        found = tokens(small, ids, cache=limited, max_tokens=end, draft=draft)
        assert found == plain[:end]
        assert offsets(limited) == {len(ids) + max(end - 1, 0)}  # the last is not fed
        if end == 0:
            continue
        running = generate_tokens(small, ids, cache=cache, max_tokens=40, draft=draft)
        assert list(itertools.islice(running, end)) == found
        running.close()
        assert offsets(cache) == {len(ids) + end}
        for layer in cache:
            layer.trim(1)
        options = {"cache": cache, "draft": lookup(), "history": ids}
        assert found + tokens(small, found[-1:], max_tokens=40 - end, **options) == plain


@pytest.mark.parametrize(("margin", "same"), [(0.04, True), (0.0, False)])
def test_choices_within_rounding_are_left_to_a_single_step(monkeypatch, margin, same):
    """Noise as of a device that sums in another order; without a margin it changes the text."""
    monkeypatch.setattr(sampling_module, "ROUNDING_SHARE", {mx.float32: margin})
    model = tiny_model(PLAIN, seed=8)
    head = type(model).head

    def noisy(self, h):
        logits = head(self, h)
        if logits.shape[1] == 1:
            return logits
        noise = mx.random.uniform(-1, 1, logits.shape, key=mx.random.key(h.shape[1]))
        return logits + noise * 0.02 * mx.abs(logits).max(axis=-1, keepdims=True)

    monkeypatch.setattr(type(model), "head", noisy)
    equal = []
    for case in range(8):
        ids = [case, 3, 3]
        plain = tokens(model, ids, max_tokens=24)
        draft = Oracle(len(ids), plain)
        equal.append(plain == tokens(model, ids, max_tokens=24, draft=draft))
    assert all(equal) == same


def test_events_and_counts(loaded, prompt):
    plain = list(stream_generate(*loaded, prompt, max_tokens=40))
    draft = Oracle(len(prompt), ids_of(plain) + [7] * 9)
    events = list(stream_generate(*loaded, prompt, max_tokens=40, draft=draft))
    found, wanted = ([(e.text, e.ids, e.stopped_by) for e in all_] for all_ in (events, plain))
    assert found == wanted
    stats = events[-1].stats
    assert 10 < stats.accepted_tokens <= stats.drafted_tokens
    assert (plain[-1].stats.drafted_tokens, plain[-1].stats.accepted_tokens) == (0, 0)


TEXTS = st.lists(st.integers(0, 3), max_size=60)


def scanned(ids, count):
    """The match length at the last occurrence of the longest final n-gram, and the ids after it."""
    for size in range(min(speculate.LONGEST_NGRAM, len(ids)), 0, -1):
        for end in range(len(ids) - 1, size - 1, -1):
            if ids[end - size : end] == ids[-size:]:
                common = common_length(ids[:end][::-1], ids[::-1])
                text = list(ids)
                for place in range(end, end + count):
                    text.append(text[place])
                return min(common, speculate.LONGEST_MATCH), text[len(ids) :]
    return 0, []


@given(TEXTS, TEXTS, st.integers(1, 12))
def test_the_index_finds_what_a_scan_finds(ids, later, count):
    index, used = PromptLookup(), PromptLookup()
    for end, token in enumerate(ids, 1):
        index.extend([token])
        assert (index.match_length(), index.propose(count)) == scanned(ids[:end], count)
    for text in (ids, [*ids, *later], later):  # further generations
        used.begin(text)
        assert (used.match_length(), used.propose(count)) == scanned(text, count)


def measured(pass_s, proposals, counts):
    """Estimates from steps of 1 s, passes of `pass_s`, and hits and misses by kind."""
    length = DraftLength()
    for _ in range(40):
        length.add_step(1.0)
        length.add_pass(proposals, pass_s)
        for kind, (hits, misses) in counts.items():
            length.add_proposals(kind, hits, misses)
    return length


def test_the_number_of_proposals_that_pays_is_chosen():
    length = measured(2.0, 4, {1: (0, 1), 2: (1, 1), 3: (20, 0)})
    assert length.best((1, 99)) == 0
    assert 1 <= length.best((2, 99)) <= 2
    assert length.best((3, 99)) == speculate.MOST_PROPOSED
    assert length.best((3, 2)) == 2 and length.best((3, 0)) == 0


def test_expensive_passes_are_stopped_and_tried_again_later():
    length = measured(2.0, 1, {1: (0, 20), 2: (20, 0)})  # two positions cost two steps
    tried = []
    for step in range(1, 8 * speculate.RETRY_TOKENS):
        length.add_step(1.0)
        assert length.best((1, 9)) == 0
        while proposals := length.best((2, 9)):
            tried.append(step)
            length.add_pass(proposals, 1.0 + proposals)
    assert sorted(set(tried)) == [speculate.RETRY_TOKENS * n for n in (1, 3, 7)]
    assert len(tried) == 2 * 3  # two passes each time

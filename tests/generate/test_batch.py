"""A sequence of a batch gets the ids that it gets alone, whatever else the batch does."""

import contextlib
import itertools
import os
from collections import Counter
from functools import cache
from unittest import mock

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx import nn

import edge
from edge.errors import EdgeError
from edge.generate import sampling as sampling_module
from edge.generate.batch import MOST_UNTAKEN, Batch
from edge.generate.decode import common_length
from edge.generate.sampling import GREEDY, Picker, Sampling
from edge.generate.speculate import DraftLength
from edge.generate.stream import StopScanner, TokenClock, stream_generate, text_events
from edge.model.cpu_linear import use_blas
from edge.model.kv_cache import make_cache
from edge.model.load import load_model
from edge.model.stablelm import FUSED_DECODE_WIDTHS
from tests.generate.test_speculate import Fixed
from tests.support.talk import tokens
from tests.support.tiny import ALL_CONFIGS, tiny_model

CASES = int(os.environ.get("EDGE_FUZZ_CASES", "5"))
MOST_IDS = 40 if CASES <= 5 else 240
MODELS = ("plain", "stable-code", "stablelm-2-12b", "llama-grouped", "llama-llama3")
DEMOS = ("mlx-fp16", "mlx-int4")
WIDTHS = {"": (), "padded": FUSED_DECODE_WIDTHS["metal"]}
SAMPLINGS = (
    Sampling(0.8, top_p=0.9, min_p=0.02, seed=3),
    Sampling(1.3, top_k=20, seed=4),
    Sampling(0.9, repetition_penalty=1.2, repetition_context=7, seed=5),
    Sampling(repetition_penalty=1.3, repetition_context=9),
)


@cache
def model_of(name, heads="", weights="float"):
    """A network as it is loaded: a tiny one for contexts of 1024 positions, or a demo's folder."""
    if name not in ALL_CONFIGS:
        return load_model(name)
    with mock.patch.dict(FUSED_DECODE_WIDTHS, dict.fromkeys(FUSED_DECODE_WIDTHS, WIDTHS[heads])):
        model = tiny_model({**ALL_CONFIGS[name], "max_position_embeddings": 1024}, seed=3)
    if weights == "int4":
        nn.quantize(model, group_size=32, bits=4)
    if weights != "not fused":
        model.fuse()
        use_blas(model)
    return model


@pytest.fixture(scope="module")
def compared():
    """Counts what was compared, and tells it with `pytest -s`."""
    counts = Counter()
    yield counts
    print("\ncompared:", ", ".join(f"{count} {what}" for what, count in counts.items()))


@cache
def alone(build, ids, sampling, count, kv_bits):
    model = model_of(*build)
    cache = make_cache(model, kv_bits)
    return tokens(model, ids, cache=cache, sampling=sampling, max_tokens=count)


def is_clear(build, ids, sampling, place, kv_bits):
    """False if rounding can move what a sequence alone chooses at a place."""
    clear, picker = [], Picker(sampling, ids, kv_bits=kv_bits)

    def look(logits, _):
        clear.append(picker.pick_many(logits)[1].item())

    model = model_of(*build)
    how = {"cache": make_cache(model, kv_bits), "sampling": sampling, "max_tokens": place + 1}
    tokens(model, ids, on_pick=look, **how)
    return clear[place]


@st.composite
def jobs(draw):
    """A prompt, its sampling, the ids to generate, the step of its arrival, the ids to take."""
    begin = draw(st.integers(0, 5))
    length = draw(st.one_of(st.integers(1, 24), st.integers(1, 300)))
    own = draw(st.integers(0, length))  # before it is what prompts have in common
    ids = [begin * 7 + i * i if i < own else i * 31 + own for i in range(length)]
    count = draw(st.integers(0, MOST_IDS))
    leaves = draw(st.one_of(st.just(count), st.integers(0, count)))
    sampling = draw(st.sampled_from((GREEDY, GREEDY, GREEDY, *SAMPLINGS)))
    return tuple(ids), sampling, count, draw(st.integers(0, 30)), leaves


def run(batch, planned, prefill_tokens=64):
    """The ids that each job took before it left."""
    waiting = sorted(range(len(planned)), key=lambda i: planned[i][3])
    taken, running = {i: [] for i in waiting}, {}
    for step in itertools.count():
        while waiting and planned[waiting[0]][3] <= step and len(running) < batch.slots:
            ids, sampling, count, *_ = planned[waiting[0]]
            made = batch.generate(ids, count, sampling, prefill_tokens=prefill_tokens)
            running[waiting.pop(0)] = made[1]
        for job, stream in list(running.items()):
            leaves = planned[job][4]
            if not takes_all(stream, taken[job], leaves):
                stream.close()
                del running[job]
        if not waiting and not running:
            return [taken[job] for job in range(len(planned))]
        batch.step()


def takes_all(stream, taken, most):
    """Takes what there is; False at the end, or once there are so many."""
    while len(taken) < most:
        token = next(stream, "end")
        if token is None:
            return True
        if token == "end":
            return False
        taken.append(token)
    return False


@settings(max_examples=CASES)
@given(
    st.lists(jobs(), min_size=1, max_size=9),
    st.sampled_from([*MODELS, *DEMOS]),
    st.sampled_from(list(WIDTHS)),
    st.sampled_from(["float", "int4", "not fused"]),
    st.sampled_from([None, None, 8]),
    st.sampled_from([None, 1, 3, 7]),
    st.integers(1, 9),
)
def test_every_sequence_gets_the_ids_it_gets_alone(
    demo_out, compared, planned, name, heads, weights, kv_bits, proposals, slots
):
    build = (demo_out / name,) if name in DEMOS else (name, heads, weights)
    model, draft = model_of(*build), None if proposals is None else Fixed(proposals)
    vocab = model.config.vocab_size
    planned = [(tuple(i % vocab for i in ids), *rest) for ids, *rest in planned]
    batch = Batch(model, slots, kv_bits, draft=draft)
    compared["mixes"] += 1
    for job, found in zip(planned, run(batch, planned), strict=True):
        ids, sampling, _, _, leaves = job
        expected = alone(build, ids, sampling, leaves, kv_bits)
        compared["tokens"] += len(found)
        if found != expected:  # only where the sequence alone is within rounding, see `Batch`
            assert len(found) == len(expected)
            place = common_length(found, expected)
            assert not is_clear(build, ids, sampling, place, kv_bits)
            compared[f"choices within rounding with a cache of {kv_bits or 32} bits"] += 1


@pytest.fixture
def batch(loaded):
    return Batch(loaded[0], 3)


def texts(loaded, batch, prompts, **how):
    """The texts of several prompts at once."""
    tokenizer = loaded[1]
    streams = (
        text_events(
            batch.generate(tokenizer.encode(text), 40, GREEDY, **how)[1],
            tokenizer,
            StopScanner(()),
            TokenClock(),
            0,
            None,
        )
        for text in prompts
    )
    found = [""] * len(prompts)
    for place, event in batch.drive(streams, lambda event: not event.ids and not event.stats):
        found[place] += event.text
    return found


@pytest.mark.parametrize("name", ["mlx-fp16", "mlx-int4"])
def test_more_prompts_than_slots(demo_out, name):
    loaded = edge.load(demo_out / name)
    prompts = ["def fib(n):", "import os\n", "x = [1, 2,", "class A:\n", "def fib(n):\n    if"]
    expected = [
        "".join(e.text for e in stream_generate(*loaded, p, max_tokens=40)) for p in prompts
    ]
    assert texts(loaded, Batch(loaded[0], 3), prompts) == expected
    # Without a caller that makes the steps.
    batch, ids = Batch(loaded[0], 2, draft=DraftLength()), loaded[1].encode(prompts[2])
    streams = [batch.generate(ids, 9, GREEDY, waits=True)[1] for _ in range(2)]
    assert all(list(stream) == tokens(loaded[0], ids, max_tokens=9) for stream in streams)


def finish(batch, stream):
    found = []
    for token in stream:
        if token is None:
            batch.step()
        else:
            found.append(token)
    return found


def test_slots_keep_their_ids_and_the_longest_prefix_is_reused(batch, loaded, prompt):
    others = [[7 + i, *prompt] for i in range(3)]
    made = [finish(batch, batch.generate(ids, 5, GREEDY)[1]) for ids in others]
    assert batch.held == [[*ids, *m[:-1]] for ids, m in zip(others, made, strict=True)]
    reused, stream = batch.generate([*others[1], *made[1], 9], 5, GREEDY)
    assert reused == len(prompt) + 5 and batch.held[1][:reused] == [*others[1], *made[1][:-1]]
    taken = [stream, *(batch.generate(prompt, 5, GREEDY)[1] for _ in range(2))]
    with pytest.raises(EdgeError, match="all 3 sequences"):
        batch.generate(prompt, 5, GREEDY)
    taken.pop().close()
    assert batch.generate(prompt, 5, GREEDY)
    # Little in common is worth less than another slot's age.
    fresh = [7, *range(40, 80)]
    batch = Batch(loaded[0], 2)
    for ids in (others[0], others[1], fresh):
        finish(batch, batch.generate(ids, 2, GREEDY)[1])
    assert common_length(batch.held[0], fresh) == len(fresh)
    batch.reset()
    assert batch.held == [[], []]


def test_a_sequence_whose_ids_nobody_takes_waits(batch, loaded, prompt):
    slow, fast = (batch.generate(ids, 60, GREEDY)[1] for ids in (prompt, prompt[:5]))
    assert finish(batch, fast) == tokens(loaded[0], prompt[:5], max_tokens=60)
    assert len(batch._sequences[0].ready) in (MOST_UNTAKEN, MOST_UNTAKEN + 1)  # one ahead
    assert finish(batch, slow) == tokens(loaded[0], prompt, max_tokens=60)


def test_a_long_prompt_stops_others_for_one_part_at_most(batch, loaded, prompt):
    """Of the others each gets a token in every step."""
    running = [batch.generate(prompt[i:], 200, GREEDY)[1] for i in range(2)]
    while any(next(stream) is None for stream in running):
        batch.step()
    seen = []
    stream = batch.generate(prompt * 20, 4, GREEDY, lambda *done: seen.append(done), 16)[1]
    for step in range(1, 9):
        batch.step()
        assert len(seen) == step and seen[-1][0] == 16 * step
        assert all(next(other) is not None for other in running)
        assert next(stream) is None
    assert finish(batch, stream) == tokens(loaded[0], prompt * 20, max_tokens=4, prefill_tokens=16)


def test_one_that_fails_or_leaves_does_not_hurt_the_others(batch, loaded, prompt, monkeypatch):
    def leave(done, total):
        raise KeyError("gone")

    good = batch.generate(prompt, 30, GREEDY)[1]
    gone = batch.generate(prompt[3:], 30, GREEDY, leave)[1]
    ended = batch.generate(prompt[4:], 30, GREEDY)[1]
    batch.step()
    ended.close()
    with pytest.raises(KeyError):
        finish(batch, gone)
    head = type(loaded[0]).head
    with monkeypatch.context() as patch:
        patch.setattr(type(loaded[0]), "head", lambda self, h: head(self, h) * mx.nan)
        damaged = batch.generate(prompt[5:], 30, GREEDY)[1]
        batch._compute_part(batch._prompts[0])
    with pytest.raises(EdgeError, match="NaN"):
        finish(batch, damaged)
    assert finish(batch, good) == tokens(loaded[0], prompt, max_tokens=30)
    # What NaN leaves in a slot beyond the length of the next sequence there.
    for array in batch._cache.arrays:
        array[1, :, 50:] = mx.nan
    streams = [batch.generate(prompt[i:], 12, SAMPLINGS[1 - i])[1] for i in range(2)]
    for place, stream in enumerate(streams):
        how = {"sampling": SAMPLINGS[1 - place], "max_tokens": 12}
        assert finish(batch, stream) == tokens(loaded[0], prompt[place:], **how)
    stream = batch.generate(prompt, 30, GREEDY)[1]
    batch.reset()
    with pytest.raises(RuntimeError, match="reset"):
        finish(batch, stream)


@pytest.mark.parametrize(("margin", "same"), [(0.04, True), (0.0, False)])
def test_choices_within_rounding_are_left_to_a_step_alone(monkeypatch, margin, same):
    """Noise as of a device that sums in another order; without a margin it changes the text."""
    monkeypatch.setattr(sampling_module, "ROUNDING_SHARE", {mx.float32: margin})
    model = model_of("plain")
    head = type(model).head

    def noisy(self, h):
        logits = head(self, h)
        if h.shape[0] == 1:
            return logits
        noise = mx.random.uniform(-1, 1, logits.shape, key=mx.random.key(h.shape[1]))
        return logits + noise * 0.02 * mx.abs(logits).max(axis=-1, keepdims=True)

    prompts = [[case, 3, 3] for case in range(6)]
    plain = [tokens(model, ids, max_tokens=24) for ids in prompts]
    monkeypatch.setattr(type(model), "head", noisy)
    batch = Batch(model, 6)
    found = [[] for _ in prompts]
    for place, token in batch.drive(batch.generate(ids, 24, GREEDY)[1] for ids in prompts):
        found[place].append(token)
    assert (found == plain) == same


def test_log_probabilities_come_in_order(batch, loaded, prompt):
    seen, expected = [], []
    streams = [
        batch.generate(prompt[i:], 8, GREEDY, on_pick=lambda *pick: seen.append(pick))[1]
        for i in range(2)
    ]
    found = [finish(batch, stream) for stream in streams]
    assert sorted(int(t.item()) for _, t in seen) == sorted(itertools.chain(*found))
    assert all(int(mx.argmax(logits).item()) == int(t.item()) for logits, t in seen)
    assert all(logits.shape == (1, 4096) for logits, _ in seen)
    with contextlib.closing(batch.generate(prompt, 0, GREEDY, on_pick=expected.append)[1]) as none:
        assert finish(batch, none) == [] == expected


def test_a_model_whose_frequencies_follow_the_context_has_one_slot():
    assert Batch(tiny_model(ALL_CONFIGS["llama-dynamic"]), 4).slots == 1


def test_the_cache_is_written_in_place(loaded, prompt):
    """Two buffers of one layer at most exist twice, when a pass is submitted before the last."""
    batch = Batch(loaded[0], 8)
    streams = [batch.generate([i, *prompt * 30], 40, GREEDY)[1] for i in range(8)]
    for _ in range(12):
        batch.step()
        taken = [next(stream) for stream in streams]
    assert None not in taken
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(8):
        batch.step()
        taken = [next(stream) for stream in streams]
    cache_bytes = sum(array.nbytes for array in batch._cache.arrays)
    assert mx.get_peak_memory() - before < cache_bytes / 4

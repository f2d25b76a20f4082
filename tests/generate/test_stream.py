"""Text events and the one string: what is shown, why it ended, and what it took."""

import itertools
import subprocess
import sys
import time

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

import edge
from edge.errors import EdgeError
from edge.generate import stream
from edge.generate.decode import generate_tokens
from edge.generate.sampling import Sampling
from edge.generate.stop import stop_ids
from edge.generate.stream import Stats, generate, stream_generate

PROMPT = "    for i in range(10):\n        print("


@pytest.fixture(scope="module")
def loaded(demo_out):
    return edge.load(demo_out / "mlx-fp16")


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def raw_ids(loaded, count, prompt=PROMPT):
    return list(generate_tokens(loaded[0], loaded[1].encode(prompt), max_tokens=count))


def before_stop(loaded, ids):
    stops = stop_ids(loaded[1])
    return list(itertools.takewhile(lambda i: i not in stops, ids))


def test_five_lines_in_a_notebook(demo_out):
    model, tokenizer = edge.load(demo_out / "mlx-int4")
    text = ""
    for event in edge.stream_generate(model, tokenizer, "def fib(n):", max_tokens=20):
        text += event.text
    assert text == edge.generate_text(model, tokenizer, "def fib(n):", max_tokens=20)
    assert event.finish is not None and event.stats.generated_tokens > 0


def test_importing_edge_imports_no_mlx():
    code = "import edge, sys; print('mlx' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
    with pytest.raises(AttributeError, match="no attribute 'generate_txt'"):
        _ = edge.generate_txt


def test_events_join_to_the_tokens_text(loaded):
    events = list(stream_generate(*loaded, PROMPT, max_tokens=12))
    ids = [i for event in events for i in event.ids]
    assert ids == raw_ids(loaded, 12)[: len(ids)]
    shown = before_stop(loaded, ids)
    assert "".join(event.text for event in events) == decoded(loaded[1], shown)
    assert [event.finish is None for event in events] == [True] * (len(events) - 1) + [False]
    assert [event.stats is None for event in events] == [True] * (len(events) - 1) + [False]


def test_max_tokens_ends_with_length(loaded):
    count = len(before_stop(loaded, raw_ids(loaded, 12)))
    assert count >= 3
    *_, last = stream_generate(*loaded, PROMPT, max_tokens=count)
    assert (last.finish, last.ids, last.stats.generated_tokens) == ("length", (), count)


def test_a_stop_token_ends_and_is_not_shown(loaded):
    """The demo goes on after one; a reader never sees that."""
    model, tokenizer = loaded
    ids = raw_ids(loaded, 200)
    shown = before_stop(loaded, ids)
    assert len(shown) < len(ids)
    events = list(stream_generate(model, tokenizer, PROMPT, max_tokens=200))
    assert events[-1].finish == "stop token"
    assert events[-1].ids == (ids[len(shown)],)
    assert events[-1].stats.generated_tokens == len(shown) + 1
    assert "".join(event.text for event in events) == decoded(tokenizer, shown)


def test_each_stop_token_ends(loaded, monkeypatch):
    """Whatever the model says: its first token is made to be each of them in turn."""
    model, tokenizer = loaded
    for stop in stop_ids(tokenizer):
        monkeypatch.setattr(stream, "generate_tokens", lambda *a, s=stop, **k: iter_of([200, s, 5]))
        events = list(stream_generate(model, tokenizer, PROMPT))
        assert (events[-1].finish, len(events)) == ("stop token", 2)
        assert "".join(event.text for event in events) == decoded(tokenizer, [200])


def iter_of(ids):
    yield from ids


def test_a_stop_string_cuts_and_is_never_shown(loaded):
    model, tokenizer = loaded
    whole = generate(model, tokenizer, PROMPT, max_tokens=30)
    assert len(whole) > 8
    for stop in (whole[3:5], whole[6:9], whole[4]):
        events = list(stream_generate(model, tokenizer, PROMPT, max_tokens=30, stop=[stop]))
        assert events[-1].finish == "stop string"
        assert "".join(event.text for event in events) == whole.split(stop)[0]
        ids = [i for event in events for i in event.ids]
        assert stop in decoded(tokenizer, ids)
        assert stop not in decoded(tokenizer, ids[:-1])


def test_a_stop_string_that_never_comes_holds_nothing_back_at_the_end(loaded):
    whole = generate(*loaded, PROMPT, max_tokens=10)
    never = whole[-2:] + "\x00"
    assert generate(*loaded, PROMPT, max_tokens=10, stop=[never]) == whole


def test_a_stop_string_in_what_the_detokenizer_held_back(loaded, monkeypatch):
    """Half a character becomes U+FFFD only when nothing more comes."""
    model, tokenizer = loaded
    half = tokenizer.encode("é")
    assert len(half) > 1
    monkeypatch.setattr(stream, "generate_tokens", lambda *a, **k: iter_of(half[:1]))
    events = list(stream_generate(model, tokenizer, PROMPT, stop=["\ufffd"]))
    assert [(event.text, event.finish) for event in events] == [("", None), ("", "stop string")]
    assert generate(model, tokenizer, PROMPT) == "\ufffd"


def test_max_tokens_zero_and_one(loaded):
    (event,) = stream_generate(*loaded, PROMPT, max_tokens=0)
    assert (event.text, event.ids, event.finish) == ("", (), "length")
    stats = event.stats
    assert (stats.generated_tokens, stats.ttft_s, stats.decode_tok_s) == (0, None, None)
    assert stats.prefill_s > 0
    events = list(stream_generate(*loaded, PROMPT, max_tokens=1))
    assert sum(len(event.ids) for event in events) == 1
    assert events[-1].stats.decode_tok_s is None and events[-1].stats.ttft_s > 0


def test_stats_are_the_stamps(loaded, monkeypatch):
    """A clock that goes on by a second at each look: call, prefill, then one per token."""
    seconds = itertools.count(100)
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(seconds) * 10**9)
    count = len(before_stop(loaded, raw_ids(loaded, 9)))
    *_, last = stream_generate(*loaded, PROMPT, max_tokens=count)
    prompt = len(loaded[1].encode(PROMPT))
    assert last.stats == Stats(prompt, count, prefill_s=1.0, ttft_s=2.0, decode_tok_s=1.0)


def test_the_same_seed_gives_the_same_text(loaded):
    def text(seed):
        return generate(*loaded, PROMPT, max_tokens=30, sampling=Sampling(1.0, seed=seed))

    first = text(1)
    mx.random.seed(99)
    assert text(1) == first
    assert text(2) != first


def test_a_cache_continues_the_text(loaded):
    model, tokenizer = loaded
    whole = generate(model, tokenizer, "def fib(n):\n    return 1", max_tokens=10)
    cache = make_prompt_cache(model)
    generate(model, tokenizer, "def fib(n):", max_tokens=0, cache=cache)
    assert generate(model, tokenizer, "\n    return 1", max_tokens=10, cache=cache) == whole


def test_closing_between_events_closes_the_tokens(loaded):
    model, tokenizer = loaded
    cache = make_prompt_cache(model)
    events = stream_generate(model, tokenizer, PROMPT, cache=cache)
    ids = [i for event in itertools.islice(events, 3) for i in event.ids]
    events.close()
    assert {layer.offset for layer in cache} == {len(tokenizer.encode(PROMPT)) + len(ids)}
    assert list(events) == []


def test_ids_and_text_are_the_same_prompt(loaded):
    ids = loaded[1].encode(PROMPT)
    assert generate(*loaded, ids, max_tokens=9) == generate(*loaded, PROMPT, max_tokens=9)


def test_empty_text_begins_with_bos(loaded):
    bos = loaded[0].config.bos_token_id
    assert generate(*loaded, "", max_tokens=9) == generate(*loaded, [bos], max_tokens=9)


def test_empty_ids_and_empty_text_after_a_cache_are_refused(loaded):
    model, tokenizer = loaded
    with pytest.raises(EdgeError, match="the prompt has no tokens"):
        stream_generate(model, tokenizer, [])
    cache = make_prompt_cache(model)
    generate(model, tokenizer, PROMPT, max_tokens=0, cache=cache)
    with pytest.raises(EdgeError, match="the prompt has no tokens"):
        stream_generate(model, tokenizer, "", cache=cache)


def test_mistakes_are_refused_by_the_call_itself(loaded):
    with pytest.raises(EdgeError, match="a stop string is empty"):
        stream_generate(*loaded, PROMPT, stop=[""])
    with pytest.raises(EdgeError, match="the model's context ends at 1024"):
        stream_generate(*loaded, "x = 1\n" * 1024)

"""Text events: the text, the reason of the end, and the figures."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import load as load_peer_tokenizer

from edge.errors import EdgeError
from edge.generate import stream
from edge.generate.decode import generate_tokens
from edge.generate.stream import Stats, StopScanner, generate, stop_ids, stream_generate
from tests.support.talk import ids_of, joined

PROMPT = "    for i in range(10):\n        print("
GREETING = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_a_stop_token_ends_the_text_and_is_not_in_it(loaded):
    ids = list(generate_tokens(loaded[0], loaded[1].encode(GREETING), max_tokens=200))
    shown = list(itertools.takewhile(lambda i: i not in stop_ids(loaded[1]), ids))
    assert 3 <= len(shown) < len(ids)
    events = list(stream_generate(*loaded, GREETING, max_tokens=200))
    assert ids_of(events) == ids[: len(shown) + 1]
    assert joined(events) == loaded[1].decode(shown)
    last = events[-1]
    assert (last.stopped_by, last.ids) == ("stop token", (ids[len(shown)],))
    assert last.stats.generated_tokens == len(shown) + 1
    assert {(event.stopped_by, event.stats) for event in events[:-1]} == {(None, None)}


def test_a_stop_string_ends_the_text_and_is_not_in_it(loaded):
    whole = generate(*loaded, PROMPT, max_tokens=30)
    assert len(whole) > 8
    for stop in (whole[3:5], whole[6:9], whole[4]):
        events = list(stream_generate(*loaded, PROMPT, max_tokens=30, stop=[stop]))
        assert (events[-1].stopped_by, joined(events)) == ("stop string", whole.split(stop)[0])
        assert stop in loaded[1].decode(ids_of(events))
        assert stop not in loaded[1].decode(ids_of(events)[:-1])
    never = whole[-2:] + "\x00"
    assert generate(*loaded, PROMPT, max_tokens=30, stop=[never]) == whole


def test_a_stop_string_in_what_the_detokenizer_held_back(loaded, monkeypatch):
    half = loaded[1].encode("é")
    assert len(half) > 1
    monkeypatch.setattr(stream, "generate_tokens", lambda *_, **__: (i for i in half[:1]))
    events = list(stream_generate(*loaded, PROMPT, stop=["\ufffd"]))
    assert [(event.text, event.stopped_by) for event in events] == [("", None), ("", "stop string")]
    assert generate(*loaded, PROMPT) == "\ufffd"


@pytest.mark.parametrize(
    ("count", "ttft_s", "decode_tok_s"), [(0, None, None), (1, 2.0, None), (3, 2.0, 1.0)]
)
def test_stats_are_the_stamps(loaded, monkeypatch, count, ttft_s, decode_tok_s):
    seconds = itertools.count(100)  # one per stamp: call, prefill, each token
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(seconds) * 10**9)
    *_, last = stream_generate(*loaded, PROMPT, max_tokens=count)
    prompt = len(loaded[1].encode(PROMPT))
    assert last.stopped_by == "length"
    assert last.stats == Stats(prompt, count, 1.0, ttft_s, decode_tok_s)


def test_a_cache_continues_the_text(loaded):
    whole = generate(*loaded, "def fib(n):\n    return 1", max_tokens=10)
    cache = make_prompt_cache(loaded[0])
    generate(*loaded, "def fib(n):", max_tokens=0, cache=cache)
    assert generate(*loaded, "\n    return 1", max_tokens=10, cache=cache) == whole
    for prompt, stop, sentence in (("", "x", "the prompt has no tokens"), ("x", "", "is empty")):
        with pytest.raises(EdgeError, match=sentence):
            stream_generate(*loaded, prompt, cache=cache, stop=[stop])


# Few letters, so that stop strings occur, overlap and nearly occur.
LETTERS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def naive(text, stops):
    for end in range(1, len(text) + 1):
        complete = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(complete)]
    return text


@given(LETTERS, STOPS, st.data())
def test_any_pieces_give_the_result_of_reading_by_character(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    scanner, passed = StopScanner(stops), ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        passed += scanner.add(text[start:end])
        assert len(scanner.held) <= max(map(len, stops), default=1) - 1
        if scanner.found is None:
            assert passed + scanner.held == text[:end]
            assert not scanner.held or any(s.startswith(scanner.held) for s in stops)
    assert passed + scanner.finish() == naive(text, stops)
    assert (scanner.found is not None) == any(stop in text for stop in stops)


def test_the_demos_stop_tokens(loaded, demo_out):
    for tokenizer in (loaded[1], load_peer_tokenizer(demo_out / "mlx-fp16")):
        names = {tokenizer.convert_ids_to_tokens(i) for i in stop_ids(tokenizer)}
        assert names == {name for name in stream.STOP_TOKENS if name in tokenizer.get_vocab()}
        assert {"<|endoftext|>", "<|im_end|>", "<|im_start|>", "<fim_middle>"} <= names

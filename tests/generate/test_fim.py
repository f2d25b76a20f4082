"""Fill in the middle with the demo: prompts, windows, line ends, and the cache between calls."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

import edge
from edge.convert.sources.find import DEMO_PATH
from edge.errors import EdgeError
from edge.generate.fim import Completer
from edge.generate.fim_prompt import (
    LEAST_CHARACTERS,
    FimTokens,
    fit,
    near_beginning,
    near_end,
)
from edge.generate.prefix_cache import common_length
from edge.generate.sampling import Sampling
from edge.tokenizer.special_tokens import encode_text

CONTEXT = 1024
NAMES = [
    token["content"]
    for token in json.loads((DEMO_PATH / "tokenizer.json").read_text())["added_tokens"]
]


@pytest.fixture(scope="module")
def loaded(demo_out):
    return edge.load(demo_out / "mlx-fp16")


@pytest.fixture
def completer(loaded):
    return Completer(*loaded)


@pytest.fixture(scope="module")
def backend():
    return Tokenizer.from_file(str(DEMO_PATH / "tokenizer.json"))


@pytest.fixture
def prompts(completer, monkeypatch):
    """The ids that the network gets, request by request, decoded."""
    seen = []
    follow = completer._source.follow
    monkeypatch.setattr(
        completer._source, "follow", lambda ids, *how: seen.append(ids) or follow(ids, *how)
    )
    return lambda: [completer._backend.decode(ids, skip_special_tokens=False) for ids in seen]


# --- prompts


def test_psm_is_the_default_and_adds_nothing(completer, prompts):
    completer.complete("  a\n", "\n b ", max_tokens=1)
    assert prompts() == ["<fim_prefix>  a\n<fim_suffix>\n b <fim_middle>"]


def test_spm_has_the_suffix_first(completer, prompts):
    completer.complete("a", "b", order="spm", max_tokens=1)
    assert prompts() == ["<fim_prefix><fim_suffix>b<fim_middle>a"]


def test_other_files_come_before_each_with_the_token_that_joins_them(completer, prompts):
    completer.complete("a", "", context=["one", "two"], max_tokens=1)
    assert prompts() == [
        "one<repo_continuation>two<repo_continuation><fim_prefix>a<fim_suffix><fim_middle>"
    ]


def test_it_fills_the_cards_hole_and_says_what_it_took(completer):
    done = completer.complete("for key, value in d.", "():\n    print(key, value)\n", order="spm")
    assert (done.text, done.stopped_by) == ("items", "stop token")
    assert (done.prompt_tokens, done.reused_tokens) == (19, 0)
    assert done.generated_tokens == 2
    assert 0 < done.ttft_s <= done.total_s
    assert done.decode_tok_s > 0


def test_max_tokens_is_a_reason(completer):
    done = completer.complete("import ", "", max_tokens=3, stop_rules=False)
    assert (done.generated_tokens, done.stopped_by) == (3, "max tokens")


def test_max_lines_is_a_reason(completer):
    done = completer.complete("import os\nimport ", "", max_lines=1, stop_rules=False)
    assert done.stopped_by == "max lines"
    assert "\n" not in done.text


def test_rules_can_be_left_out(completer):
    hole = ("import os\n\ndef f(path):\n    ", "\n    return x\n")
    ruled = completer.complete(*hole)
    free = completer.complete(*hole, stop_rules=False)
    assert ruled.stopped_by == "blank line"
    assert free.stopped_by in ("stop token", "max tokens")
    assert free.text.startswith(ruled.text + "\n\n")


def test_two_empty_sides_are_a_hole(completer):
    assert completer.complete("", "", max_tokens=4).prompt_tokens == 3


# --- special tokens


def test_a_model_without_the_tokens_is_told_which():
    bare = Tokenizer.from_str((DEMO_PATH / "tokenizer.json").read_text().replace("<fim_m", "<x_m"))
    with pytest.raises(EdgeError, match="has no <fim_middle>, so it was not trained"):
        FimTokens.find(bare)


def test_context_needs_its_token(loaded):
    completer = Completer(*loaded)
    completer._tokens = FimTokens(*(getattr(completer._tokens, n) for n in ("prefix", "suffix",
                                    "middle")), repo=None)  # fmt: skip
    with pytest.raises(EdgeError, match="<repo_continuation>"):
        completer.complete("a", "b", context=["c"])


@given(st.lists(st.sampled_from([*NAMES, "<", "|", "fim_", "a", " ", "\n", "é"]), max_size=8))
def test_names_of_special_tokens_in_code_are_text(backend, parts):
    text = "".join(parts)
    ids = encode_text(backend, text)
    assert backend.decode(ids) == text  # which leaves special tokens out
    assert not backend.encode_special_tokens


def test_so_are_names_that_the_tokenizer_does_not_flag():
    unflagged = Tokenizer.from_file(str(DEMO_PATH / "tokenizer.json"))
    unflagged.add_tokens([AddedToken("<|mark|>", special=False, normalized=False)])
    mark = unflagged.token_to_id("<|mark|>")
    assert mark in unflagged.encode("a<|mark|>b").ids
    ids = encode_text(unflagged, "a<|mark|><|mark|>b<fim_middle>")
    assert mark not in ids
    assert unflagged.decode(ids) == "a<|mark|><|mark|>b<fim_middle>"


def test_a_file_that_names_a_token_is_completed_like_any(completer, prompts):
    done = completer.complete("X = '<fim_middle>'\nY = ", "\n<|endoftext|>", max_tokens=8)
    assert done.generated_tokens >= 1
    ids = completer._source.cache.held
    assert ids.count(completer._tokens.middle) == 1


# --- the window


def test_a_long_file_loses_its_far_ends(completer, prompts, held_out_text):
    text = held_out_text * 2
    half = len(text) // 2
    done = completer.complete(text[:half], text[half:], context=["never"], max_tokens=16)
    assert done.prompt_tokens <= CONTEXT - 16
    prefix, suffix = prompts()[0].removesuffix("<fim_middle>").split("<fim_suffix>")
    assert text[:half].endswith(prefix.removeprefix("<fim_prefix>"))
    assert text[half:].startswith(suffix)
    assert "never" not in prompts()[0]
    assert len(prefix) > 2 * len(suffix) > 100


def test_context_has_the_room_that_is_left(completer, prompts, held_out_text):
    completer.complete("a", "b", context=[held_out_text, "last = 1"], max_tokens=16)
    prompt = prompts()[0]
    assert prompt.endswith("last = 1<repo_continuation><fim_prefix>a<fim_suffix>b<fim_middle>")
    assert not prompt.startswith(held_out_text[:20])
    assert len(completer._source.cache.held) >= CONTEXT - 16 - 64


@pytest.mark.parametrize("max_tokens", [0, CONTEXT - 3, 10**6])
def test_no_room_is_said(completer, max_tokens):
    with pytest.raises(EdgeError, match="choose from 1 to 1020"):
        completer.complete("a", "b", max_tokens=max_tokens)


def test_the_most_tokens_that_are_allowed_work(completer):
    assert completer.complete("a" * 50, "b" * 50, max_tokens=CONTEXT - 4).prompt_tokens == 4


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 400))
def test_fit_keeps_the_near_ends(prefix_tokens, suffix_tokens, room):
    prefix, suffix = list(range(prefix_tokens)), list(range(suffix_tokens))
    before, after, left = fit(prefix, suffix, room)
    assert left >= 0
    assert prefix[len(prefix) - len(before) :] == before
    assert suffix[: len(after)] == after
    if prefix_tokens + suffix_tokens <= room:
        assert (before, after, left) == (prefix, suffix, room - prefix_tokens - suffix_tokens)
    else:
        assert left == 0
        assert room - room / 4 - 1 < len(before) + len(after) <= room


def test_the_window_of_a_growing_prefix_moves_in_steps():
    starts = {fit(list(range(n)), list(range(500)), 800)[0][0] for n in range(1000, 1128)}
    assert len(starts) <= 3


# --- line ends


def test_a_crlf_file_gets_a_crlf_middle(completer, prompts):
    lf = completer.complete("import os\nimport ", max_tokens=12)
    crlf = completer.complete("import os\r\nimport ", max_tokens=12)
    assert prompts()[0] == prompts()[1]
    assert "\n" in lf.text
    assert crlf.text == lf.text.replace("\n", "\r\n")


@pytest.mark.parametrize("prefix", ["a\r\nb\n", "a\r\nb\rc", "a\n", "a\r"])
def test_other_line_ends_go_in_as_they_are(completer, prompts, prefix):
    completer.complete(prefix, "", max_tokens=1)
    assert prompts() == [f"<fim_prefix>{prefix}<fim_suffix><fim_middle>"]


# --- the cache


def same(a, b):
    return (a.text, a.stopped_by, a.generated_tokens, a.prompt_tokens) == (
        b.text, b.stopped_by, b.generated_tokens, b.prompt_tokens
    )  # fmt: skip


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_a_typed_file_is_completed_the_same_with_and_without_the_cache(
    loaded, held_out_text, order
):
    kept = Completer(*loaded)
    text, reused = held_out_text[:600], []
    for end in (280, 283, 290, 284, 360, 50):
        hole = (text[:end], text[400:])
        with_cache = kept.complete(*hole, order=order, max_tokens=12)
        without = Completer(*loaded).complete(*hole, order=order, max_tokens=12)
        assert same(with_cache, without)
        assert without.reused_tokens == 0
        reused.append(with_cache.prompt_tokens - with_cache.reused_tokens)
    if order == "spm":
        assert max(reused[1:4]) <= 8  # tokens computed after a few keystrokes
    else:
        assert max(reused[1:4]) < reused[0] * 0.6


def test_the_same_request_again_computes_one_token(completer):
    first = completer.complete("import ", "\n", max_tokens=4)
    again = completer.complete("import ", "\n", max_tokens=4)
    assert same(first, again)
    assert again.prompt_tokens - again.reused_tokens == 1


def test_a_generation_that_was_interrupted_leaves_a_cache_that_is_right(completer, monkeypatch):
    hole = ("import os\nimport ", "\n")
    expected = completer.complete(*hole, max_tokens=8)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edge.generate.fim.StopRules.find_stop", interrupt)
        with pytest.raises(KeyboardInterrupt):
            completer.complete("import re\nimport ", "\n", max_tokens=8)
    assert same(completer.complete(*hole, max_tokens=8), expected)


# --- as it comes

HOLES = [
    ("import os\n\ndef f(path):\n    ", "\n    return x\n", {}),
    ("import os\nimport ", "", {"stop_rules": False, "max_tokens": 40}),
    ("import os\r\nimport ", "\r\nx\r\n", {"max_tokens": 24}),
    ("for key, value in d.", "():\n    print(key, value)\n", {"order": "spm"}),
    ("x = ", "", {"max_lines": 2, "sampling": Sampling(temperature=1.5, seed=3)}),
]


@pytest.mark.parametrize(("prefix", "suffix", "options"), HOLES)
def test_the_stream_is_the_middle_and_takes_nothing_back(loaded, prefix, suffix, options):
    whole = Completer(*loaded).complete(prefix, suffix, **options)
    events = list(Completer(*loaded).stream(prefix, suffix, **options))
    assert "".join(event.text for event in events) == whole.text
    assert [e.completion is None for e in events] == [True] * (len(events) - 1) + [False]
    assert same(events[-1].completion, whole)
    assert len(events) in (whole.generated_tokens, whole.generated_tokens + 1)


def test_text_comes_before_the_end(completer):
    stream = completer.stream("import os\nimport ", stop_rules=False, max_tokens=40)
    first = next(event for event in stream if event.text)
    assert first.completion is None
    stream.close()
    again = completer.complete("import os\nimport ", stop_rules=False, max_tokens=40)
    assert again.text.startswith(first.text)
    assert again.prompt_tokens - again.reused_tokens == 1


def test_a_quantised_cache_is_trimmed_and_used_again(loaded):
    completer = Completer(*loaded, kv_bits=8)
    first = completer.complete("import ", "\n", max_tokens=4)
    again = completer.complete("import ", "\n", max_tokens=4)
    assert same(first, again)
    assert again.prompt_tokens - again.reused_tokens == 1


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_common_length(a, b):
    n = common_length(a, b)
    assert a[:n] == b[:n]
    assert a[n : n + 1] != b[n : n + 1] or n in (len(a), len(b))


def test_of_megabytes_only_what_could_be_in_the_window_is_encoded(completer, monkeypatch):
    encoded, encode = [], completer._encode
    monkeypatch.setattr(completer, "_encode", lambda text: encoded.append(text) or encode(text))
    long = "x = 1\n" * 200_000
    completer.complete(long + "y", "z" + long, context=[long], max_tokens=1)
    assert max(map(len, encoded)) <= 2 * LEAST_CHARACTERS
    assert encoded[0].endswith("x = 1\ny")
    assert encoded[1].startswith("zx = 1")
    assert encoded[2].startswith("x = 1\n")


def test_the_near_end_of_a_growing_text_moves_in_steps():
    lines = "some line of code\n" * 40_000
    starts = {len(lines[:n]) - len(near_end(lines[:n], 10)) for n in range(0, len(lines), 997)}
    assert len(starts) == len(lines) // LEAST_CHARACTERS
    assert all(begin == 0 or lines[begin - 1] == "\n" for begin in starts)
    assert near_end("short", 10) == "short"
    assert len(near_end("x" * 250_000, 10)) == 150_000
    assert near_beginning("x" * 250_000, 10) == "x" * LEAST_CHARACTERS

"""Fill in the middle with the demo: prompts, windows, line ends, and the cache between calls."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.generate.decode import MlxSource
from edge.generate.fim import LEAST_CHARACTERS, Completer, fit, near_end
from edge.generate.sampling import Sampling

CARD = ("for key, value in d.", "():\n    print(key, value)\n")
END = ("def f(x):\n    if x > 0:\n        return x\n", "")
HOLE = ("import os\n\ndef f(path):\n    ", "\n    return x\n")


@pytest.fixture
def completer(loaded):
    return Completer(MlxSource(loaded[0]), loaded[1])


@pytest.fixture
def prompts(completer, monkeypatch):
    """The texts of the prompts so far."""
    seen, generate = [], completer.source.generate
    monkeypatch.setattr(
        completer.source, "generate", lambda ids, *how: seen.append(ids) or generate(ids, *how)
    )
    return lambda: [completer._backend.decode(ids, skip_special_tokens=False) for ids in seen]


def same(a, b):
    """Equal but for the times and what was reused."""
    times = {"reused_tokens": 0, "ttft_s": 0, "total_s": 0, "decode_tok_s": 0}
    return replace(a, **times) == replace(b, **times)


@pytest.mark.parametrize(
    ("prefix", "suffix", "options", "prompt"),
    [
        ("a", "", {"context": ["one", "two"]},
         "one<repo_continuation>two<repo_continuation><fim_prefix>a<fim_suffix><fim_middle>"),
        *((text, "", {}, f"<fim_prefix>{text}<fim_suffix><fim_middle>")  # not all are CRLF
          for text in ("a\r\nb\n", "a\r\nb\rc", "a\n", "a\r")),
    ],
)  # fmt: skip
def test_the_prompt_has_only_the_given_text(completer, prompts, prefix, suffix, options, prompt):
    completer.complete(prefix, suffix, max_tokens=1, **options)
    assert prompts() == [prompt]


def test_files_that_do_not_fit_are_left_out_whole(completer, prompts):
    files = [f"{name} = 1\n" * 90 for name in "abc"]  # of 360 tokens each
    for context in (files, [files[0] * 4]):
        completer.complete("x", "", context=context, max_tokens=1)
    first, second = prompts()
    mark = "<repo_continuation>"
    assert first.split(mark)[:-1] == files[1:]
    # Of a newest file that does not fit alone the end is there.
    part = second.split(mark)[0]
    assert 1000 < len(part) < len(files[0] * 4) and files[0].endswith(part[-20:])


def test_figures_and_the_reason_of_the_end(completer):
    done = completer.complete(*CARD, order="spm")
    assert (done.text, done.stopped_by) == ("items", "stop token")
    assert (done.prompt_tokens, done.reused_tokens, done.generated_tokens) == (19, 0, 2)
    assert 0 < done.ttft_s <= done.total_s and done.decode_tok_s > 0
    done = completer.complete("import ", "", max_tokens=3, stop_rules=False)
    assert (done.generated_tokens, done.stopped_by) == (3, "length")
    ruled, free = (completer.complete(*END, order="spm", stop_rules=r) for r in (True, False))
    assert ruled.stopped_by == "blank line"
    assert free.stopped_by in ("stop token", "length")
    assert free.text.startswith(ruled.text + "\n\n")


def test_other_files_need_their_token(completer):
    completer._tokens = replace(completer._tokens, repo=None)
    with pytest.raises(EdgeError, match="<repo_continuation>"):
        completer.complete("a", "b", context=["c"])


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 400))
def test_fit_keeps_the_near_ends(prefix_tokens, suffix_tokens, room):
    prefix, suffix = list(range(prefix_tokens)), list(range(suffix_tokens))
    before, after, left = fit(prefix, suffix, room)
    assert prefix[len(prefix) - len(before) :] == before
    assert suffix[: len(after)] == after
    if prefix_tokens + suffix_tokens <= room:
        assert (before, after, left) == (prefix, suffix, room - prefix_tokens - suffix_tokens)
    else:
        assert left == 0
        assert room - room / 4 - 1 < len(before) + len(after) <= room


def test_the_window_of_a_growing_text_moves_in_steps():
    starts = {fit(list(range(n)), list(range(500)), 800)[0][0] for n in range(1000, 1128)}
    assert len(starts) <= 3
    lines = "some line of code\n" * 40_000
    most = LEAST_CHARACTERS
    starts = {len(lines[:n]) - len(near_end(lines[:n], most)) for n in range(0, len(lines), 997)}
    assert len(starts) == len(lines) // LEAST_CHARACTERS
    assert all(begin == 0 or lines[begin - 1] == "\n" for begin in starts)
    assert len(near_end("x" * 250_000, most)) == 150_000


HOLES = [
    (*HOLE, {}),
    ("import os\nimport ", "", {"stop_rules": False, "max_tokens": 40}),
    ("import os\r\nimport ", "\r\nx\r\n", {"max_tokens": 24}),
    (*CARD, {"order": "spm"}),
    ("x = ", "", {"max_lines": 2, "sampling": Sampling(temperature=1.5, seed=3)}),
]


@pytest.mark.parametrize(("prefix", "suffix", "options"), HOLES)
def test_the_stream_adds_up_to_the_middle(completer, prefix, suffix, options):
    whole = completer.complete(prefix, suffix, **options)
    completer.source.reset()
    events = list(completer.stream(prefix, suffix, **options))
    assert "".join(event.text for event in events) == whole.text
    assert all(event.completion is None for event in events[:-1])
    assert same(events[-1].completion, whole)
    assert len(events) in (whole.generated_tokens, whole.generated_tokens + 1)


def test_a_crlf_file_gets_a_crlf_middle(completer, prompts):
    lf = completer.complete("#include <stdio.h>\n\n", max_tokens=12)
    crlf = completer.complete("#include <stdio.h>\r\n\r\n", max_tokens=12)
    assert prompts()[0] == prompts()[1]
    assert "\n" in lf.text
    assert crlf.text == lf.text.replace("\n", "\r\n")

"""Transcripts: the file has every finished message, however the process ended."""

import contextlib
import itertools
import resource
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.generate.transcript import Message, Transcript, read_transcript, write_transcript

TALK = [
    Message("system", "Be short."),
    Message("user", "a\n\u2028b \U0001f600 <|im_end|>"),
    Message("assistant", 'x = "\\n"\r\n'),
    Message("user", ""),
    Message("assistant", "", cut_off=True),
]
GOOD = '{"role": "user", "content": "a", "cut_off": false}\n'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "chat.jsonl"


TEXTS = st.sampled_from(["", "a", "\n", "\u00e9"])
TURNS = st.lists(
    st.tuples(st.builds(Message, st.just("user"), TEXTS),
              st.builds(Message, st.just("assistant"), TEXTS, st.booleans())), max_size=3,
)  # fmt: skip
CONVERSATIONS = st.tuples(st.sampled_from([[], ["s"], ["t"]]), TURNS, st.booleans())


@given(st.lists(CONVERSATIONS, max_size=4))
def test_the_file_has_the_conversation_after_every_change(tmp_path_factory, conversations):
    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    transcript = Transcript(path)
    for system, turns, asked in conversations:
        messages = [Message("system", text) for text in system]
        messages += [*itertools.chain(*turns), *[Message("user", "?")] * asked]
        assert transcript.record(messages) is None
        if path.exists():
            # A system prompt alone waits for a question.
            rest = [m for m in messages if m.role != "system"]
            found = read_transcript(path)
            assert [m for m in found if m.role != "system"] == rest
            assert not rest or found == messages


def test_only_the_user_may_read_it(path):
    made = path.parent / "new" / "chat"
    Transcript(made).record(TALK)
    write_transcript(path, TALK)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (path, made, made.parent)]
    assert modes == [0o600, 0o600, 0o700]


def test_a_file_cut_at_any_byte_is_continued_from_its_last_whole_line(path):
    write_transcript(path, TALK)
    data = path.read_bytes()
    for end in range(data.index(b"\n") + 1, len(data)):
        path.write_bytes(data[:end])
        transcript = Transcript(path)
        assert transcript.messages == TALK[: data[:end].count(b"\n")]
        transcript.record(TALK)
        assert path.read_bytes() == data


@pytest.fixture
def file_limits():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield limits
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_ends_the_transcript_with_one_warning(path, file_limits):
    transcript = Transcript(path)
    assert transcript.record(TALK) is None
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 60, file_limits[1]))
    warning = transcript.record([*TALK, Message("user", "x" * 100)])
    assert "File too large" in warning and str(path) in warning
    assert transcript.record([*TALK, Message("user", "y")]) is None
    with pytest.raises(EdgeError, match="cannot be written"):
        write_transcript(path, [Message("user", "x" * 5000)])
    assert read_transcript(path) == TALK
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[]", "not a message"),
        ('{"role": "user"', "Expecting"),
        ('{"role": "user", "content": "a"}', "not a message"),
        ('{"role": "user", "content": "a", "cut_off": 1}', "not a message"),
        ('{"role": "user", "content": "\\ud800", "cut_off": false}', "surrogates"),
        ('{"undo": 2}', "1 questions to undo, not 2"),
    ],
)
def test_a_bad_line_is_named(path, line, reason):
    path.write_text(GOOD + line + "\n" + GOOD)
    with pytest.raises(EdgeError) as error:
        read_transcript(path)
    assert f"{path} is not a transcript of a chat: line 2 " in str(error.value)
    assert reason in str(error.value)


@pytest.mark.parametrize("content", ["print(1)\n", "\n", GOOD[:-1]])
def test_a_file_of_another_kind_is_refused_and_not_changed(path, content):
    path.write_text(content)
    with pytest.raises(EdgeError, match=r"is not a transcript of a chat: line 1"):
        Transcript(path)
    assert path.read_text() == content


@given(st.binary(max_size=60))
def test_any_bytes_are_a_conversation_or_an_edge_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    path.write_bytes(GOOD.encode() + data)
    with contextlib.suppress(EdgeError):
        assert all(isinstance(message, Message) for message in read_transcript(path))

"""Transcripts: what was finished is in the file, whatever ended the process."""

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
def test_the_file_tells_the_conversation_after_every_change(tmp_path_factory, conversations):
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


def test_it_is_for_the_user_alone(path):
    transcript = Transcript(path.parent / "new" / "chat")
    transcript.record(TALK)
    write_transcript(path, TALK)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (path, *(path.parent / "new").iterdir())]
    assert modes == [0o600, 0o600]
    assert stat.S_IMODE((path.parent / "new").stat().st_mode) == 0o700


def test_a_file_torn_at_any_byte_is_gone_on_with_from_its_last_whole_line(path):
    write_transcript(path, TALK)
    data = path.read_bytes()
    for end in range(data.index(b"\n") + 1, len(data)):
        path.write_bytes(data[:end])
        transcript = Transcript(path)
        assert transcript.messages == TALK[: data[:end].count(b"\n")]
        transcript.record(TALK)
        assert path.read_bytes() == data


@pytest.fixture
def full_disk():
    """Lets files grow to so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_ends_the_transcript_with_one_warning(path, full_disk):
    transcript = Transcript(path)
    assert transcript.record(TALK) is None
    full_disk(path.stat().st_size + 60)
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
        ("", "Expecting value"),
        ("[]", "not a message"),
        ('{"role": "user"', "Expecting"),
        ('{"role": "user", "content": "a"}', "not a message"),
        ('{"role": "user", "content": "a", "cut_off": 1}', "not a message"),
        ('{"role": "tool", "content": "a", "cut_off": false}', "not a message"),
        ('{"role": "user", "content": "\\ud800", "cut_off": false}', "surrogates"),
        ('{"undo": 0}', "1 questions to undo, not 0"),
        ('{"undo": 2}', "1 questions to undo, not 2"),
    ],
)
def test_a_line_without_sense_is_an_error_that_names_it(path, line, reason):
    path.write_text(GOOD + line + "\n" + GOOD)
    with pytest.raises(EdgeError) as error:
        read_transcript(path)
    assert f"{path} is not a transcript of a chat: line 2 " in str(error.value)
    assert reason in str(error.value)


@pytest.mark.parametrize("content", ["a", "print(1)\n", '{"role": "user"}\n', "\n", GOOD[:-1]])
def test_a_file_of_another_kind_is_refused_and_left_alone(path, content):
    path.write_text(content)
    with pytest.raises(EdgeError, match=r"is not a transcript of a chat: line 1"):
        Transcript(path)
    assert path.read_text() == content


@given(st.binary(max_size=60))
def test_any_bytes_are_a_conversation_or_one_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    path.write_bytes(GOOD.encode() + data)
    with contextlib.suppress(EdgeError):
        assert all(isinstance(message, Message) for message in read_transcript(path))

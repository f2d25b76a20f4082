"""Transcripts: everything that was shown is in the file, whatever ended the process."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.generate.transcript import (
    Message,
    Transcript,
    read_earlier,
    read_transcript,
    write_transcript,
)

ROOT = Path(__file__).resolve().parents[2]
HEADER = '{"event": "edge chat", "version": 1}\n'
TALK = [
    Message("system", "Be short."),
    Message("user", "a\n\u2028b \U0001f600 <|im_end|>"),
    Message("assistant", 'x = "\\n"\r\n'),
    Message("user", ""),
    Message("assistant", "", cut_off=True),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "chat.jsonl"


def lines(*events):
    return HEADER + "".join(json.dumps(event) + "\n" for event in events)


# --- what it tells


def test_every_event_is_in_the_file_at_once(path):
    transcript = Transcript(path)
    assert read_transcript(path) == []
    transcript.system("s")
    assert read_transcript(path) == [Message("system", "s")]
    transcript.user("q")
    said = [Message("system", "s"), Message("user", "q")]
    assert read_transcript(path) == [*said, Message("assistant", "", cut_off=True)]
    transcript.piece("a")
    transcript.piece("")
    transcript.piece("b")
    assert read_transcript(path) == [*said, Message("assistant", "ab", cut_off=True)]
    transcript.end()
    assert read_transcript(path) == [*said, Message("assistant", "ab")]
    transcript.regenerate()
    assert read_transcript(path) == [*said, Message("assistant", "ab")]
    transcript.piece("c")
    transcript.end(cut_off=True)
    assert read_transcript(path) == [*said, Message("assistant", "c", cut_off=True)]
    transcript.system(None)
    transcript.user("r")
    transcript.end()
    assert read_transcript(path)[-1] == Message("assistant", "")
    transcript.undo()
    assert read_transcript(path) == [Message("user", "q"), Message("assistant", "c", cut_off=True)]
    transcript.clear()
    assert read_transcript(path) == []
    transcript.restart(TALK)
    assert read_transcript(path) == TALK
    assert transcript.warning is None


TEXTS = st.text(max_size=8)


@given(st.one_of(st.none(), TEXTS), st.lists(st.tuples(TEXTS, TEXTS, st.booleans()), max_size=4))
def test_what_is_written_is_read(tmp_path_factory, system, turns):
    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    messages = [] if system is None else [Message("system", system)]
    for question, answer, cut_off in turns:
        messages += [Message("user", question), Message("assistant", answer, cut_off)]
    write_transcript(path, messages)
    assert read_transcript(path) == messages


def test_half_a_character_does_not_stop_it(path):
    with Transcript(path) as transcript:
        transcript.user("a\ud800b")
    assert read_transcript(path)[0] == Message("user", "a?b")


def test_it_is_for_the_user_alone(path):
    Transcript(path).close()
    write_transcript(path.with_name("other"), TALK)
    assert {stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()} == {0o600}


def test_one_that_cannot_be_written_leaves_the_older_one(path):
    write_transcript(path, TALK)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(EdgeError, match="cannot be written"):
            write_transcript(path, [Message("user", "x" * 5000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_transcript(path) == TALK
    assert list(path.parent.iterdir()) == [path]


# --- crashes


def test_a_file_torn_at_any_byte_is_read_up_to_there(path):
    whole = path.with_name("whole")
    write_transcript(whole, TALK)
    data = whole.read_bytes()
    lengths = []
    for end in range(len(HEADER), len(data) + 1):
        path.write_bytes(data[:end])
        found = read_transcript(path)
        assert all(a.content == b.content for a, b in zip(found[:-1], TALK, strict=False))
        lengths.append(len(found))
    assert lengths == sorted(lengths) and lengths[-1] == len(TALK)


def test_a_torn_file_is_continued(path):
    path.write_text(lines({"event": "user", "text": "a"}) + '{"event": "piece", "te')
    with Transcript(path) as transcript:
        transcript.user("b")
        transcript.piece("c")
        transcript.end()
    assert [m.content for m in read_transcript(path)] == ["a", "", "b", "c"]
    assert transcript.warning is None


CHILD = """
import sys, edge
from edge.generate.conversation import Conversation
from edge.generate.sampling import Sampling
from edge.generate.transcript import Transcript
chat = Conversation(*edge.load(sys.argv[1]), system="s", transcript=Transcript(sys.argv[2]))
list(chat.ask("one", max_tokens=2))
for event in chat.ask("two", sampling=Sampling(temperature=3, seed=1)):
    sys.stdout.buffer.write(event.text.encode() + b"\\0")
    sys.stdout.buffer.flush()
    sys.stdin.readline()
"""


def test_a_kill_in_mid_answer_loses_nothing_that_was_shown(demo_out, path):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(demo_out / "mlx-fp16"), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    shown = b""
    try:
        while shown.count(b"\0") < 20:
            shown += child.stdout.read(1)
            if shown.endswith(b"\0"):
                child.stdin.write(b"\n")
                child.stdin.flush()
    finally:
        child.kill()
        assert child.wait() == -signal.SIGKILL
    shown += child.stdout.read()  # what it still wrote before the kill
    child.stdin.close()
    child.stdout.close()
    system, one, _, two, answer = read_transcript(path)
    assert [m.content for m in (system, one, two)] == ["s", "one", "two"]
    assert answer.cut_off
    text = b"".join(shown.split(b"\0")[: shown.count(b"\0")]).decode()
    assert len(text) > 20
    assert answer.content.startswith(text)


# --- what cannot be written


def warning_of(path, reason):
    transcript = Transcript(path)
    assert reason in transcript.warning
    assert str(path) in transcript.warning
    transcript.user("goes on")
    transcript.end()
    transcript.close()
    return transcript.warning


def test_a_file_of_another_kind_is_left_alone(path):
    for content in ("print(1)\n", HEADER[:-1], HEADER.replace("1", "2")):
        path.write_text(content)
        warning_of(path, "it holds something else")
        assert path.read_text() == content


def test_a_place_where_no_file_can_be_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    warning_of(tmp_path / "file" / "chat", "File exists")
    warning_of(tmp_path, "Is a directory")
    os.mkfifo(tmp_path / "pipe")
    warning_of(tmp_path / "pipe", "it is no file")


def test_a_full_disk_ends_the_transcript_and_says_so(path):
    transcript = Transcript(path)
    transcript.user("q")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 60, limits[1]))
    try:
        transcript.piece("a")
        assert transcript.warning is None
        transcript.piece("b" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in transcript.warning
    transcript.end()
    assert read_transcript(path) == [Message("user", "q"), Message("assistant", "a", True)]


# --- files that nobody vouches for


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "no event"),
        ("{}", "no event"),
        ("nonsense", "Expecting value"),
        ('{"event": "user"', "Expecting"),
        ('{"event": "user"}', "no text"),
        ('{"event": "user", "text": 3}', "no text"),
        ('{"event": "user", "text": "\\ud800"}', "surrogates"),
        ('{"event": "user", "text": "a", "text": "b"}', "twice"),
        ('{"event": "system", "text": []}', "no text"),
        ('{"event": "piece", "text": "a"}', "no answer is under way"),
        ('{"event": "end", "cut_off": false}', "no answer is under way"),
        ('{"event": "undo"}', "no question"),
        ('{"event": "regenerate"}', "no question"),
        ('{"event": ["user"]}', "there is no event"),
        ('{"event": null}', "there is no event"),
        ('{"event": "edge chat", "version": 2}', "version is 2"),
        ("[" * 100_000, "nested absurdly deep"),
        ('{"event": "user", "text": ' + "9" * 5000 + "}", "digits"),
    ],
)
def test_a_line_without_sense_is_an_error_that_names_it(path, line, reason):
    path.write_text(HEADER + '{"event": "clear"}\n' + line + "\n" + '{"event": "clear"}\n')
    with pytest.raises(EdgeError) as error:
        read_transcript(path)
    assert f"{path} makes no sense at line 3 (" in str(error.value)
    assert reason in str(error.value)
    assert str(error.value).count("\n") == 0


def test_an_end_without_its_flag_is_an_error(path):
    path.write_text(lines({"event": "user", "text": "a"}, {"event": "end", "cut_off": 1}))
    with pytest.raises(EdgeError, match=r"line 3 .*neither true nor false"):
        read_transcript(path)


def test_bytes_that_are_no_utf8_are_an_error(path):
    path.write_bytes(HEADER.encode() + b'{"event": "user", "text": "\xff"}\n')
    with pytest.raises(EdgeError, match="line 2"):
        read_transcript(path)


@pytest.mark.parametrize("content", ["", "a", "print(1)\n", '{"event": "user", "text": "a"}\n'])
def test_a_file_of_another_kind_is_no_transcript(path, content):
    path.write_text(content)
    with pytest.raises(EdgeError, match=r"choose (one|another transcript)"):
        read_transcript(path)


def test_what_is_no_file_is_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing"):
        with pytest.raises(EdgeError, match="choose a transcript"):
            read_transcript(path)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_conversation_or_one_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    path.write_bytes(HEADER.encode() + data)
    try:
        assert all(isinstance(message, Message) for message in read_transcript(path))
    except EdgeError as error:
        assert "\n" not in str(error)


def test_a_file_that_is_no_transcript_is_not_to_be_mended(path):
    path.write_text("export PATH=/bin\n")
    with pytest.raises(
        EdgeError, match=r"is no transcript of a chat \(Expecting value.*choose one"
    ):
        read_transcript(path)


def test_a_restart_is_one_write(path, monkeypatch):
    messages = [Message("user", "a"), Message("assistant", "b")]
    written, write = [], os.write
    with Transcript(path) as transcript:
        monkeypatch.setattr(
            os, "write", lambda file, data: written.append(data) or write(file, data)
        )
        transcript.restart(messages)
    assert len(written) == 1
    assert read_transcript(path) == messages


def test_nothing_was_said_in_a_file_that_is_not_there_or_empty(path):
    assert read_earlier(path) == []
    path.write_text("")
    assert read_earlier(path) == []
    path.write_text("x = 1\n")
    with pytest.raises(EdgeError, match="no transcript"):
        read_earlier(path)

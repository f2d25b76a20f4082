"""The loop and its commands without a terminal, on real models."""

import contextlib
import io
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

import edge
from edge.chat.commands import TABLE, as_block, as_message, split_command
from edge.chat.input import is_open, without_quotes
from edge.chat.paths import state_folder
from edge.chat.repl import greet, run_loop, take
from edge.chat.session import Opened, Session, Settings, Tools
from edge.chat.terminal import Screen
from edge.cli.chat import _find_hole
from edge.errors import EdgeError
from edge.generate.sampling import GREEDY
from edge.generate.stream import generate
from edge.generate.transcript import Message, Transcript, read_transcript, write_transcript
from edge.power.choose import NoMeter
from edge.power.meter import Sample
from tests.support.tiny import PLAIN, write_checkpoint

DEMO = Path(edge.__file__).parent / "data" / "demo"


class FakeMeter:
    """20 W from start to stop."""

    source, boundary, unavailable, flags = "fake", "everything", None, ()

    def start(self):
        self._begin_ns = time.monotonic_ns()

    def stop(self):
        end_ns = time.monotonic_ns()
        return (Sample(self._begin_ns, end_ns, {"CPU": 20.0 * (end_ns - self._begin_ns) / 1e9}),)


@pytest.fixture(scope="module")
def demo():
    return Opened("demo", *edge.load(DEMO))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = write_checkpoint(tmp_path_factory.mktemp("base"), PLAIN)
    return Opened("base", *edge.load(path))


@pytest.fixture
def start():
    """A session and a function that types a text and gives what was printed."""
    sessions = []

    def make(opened, meter=None, models=None, transcript=None, **settings):
        stream = io.StringIO()
        session = Session(
            opened,
            Settings(GREEDY, **{"max_tokens": 8, **settings}),
            Tools((models or {}).__getitem__, _find_hole),
            Screen(stream),
            meter or NoMeter("none"),
            transcript or Transcript(),
        )
        sessions.append(session)

        def typed(text):
            stream.seek(0)
            stream.truncate()
            try:
                take(session, text)
            except EdgeError as error:
                return str(error)
            return stream.getvalue()

        return session, typed

    yield make
    for session in sessions:
        session.close()


# --- what is a command


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/help", ("help", "")),
        ("/SET  top_p 1 ", ("set", "top_p 1")),
        ("/system a\nb", ("system", "a\nb")),
        ("/nothing", ("nothing", "")),
        ("/usr/bin/x", None),
        ("// a comment", None),
        ("/undo\nand more", None),
        ("/* C */", None),
        (" /help", None),
        ("/", None),
        ("1/2", None),
    ],
)
def test_a_command_looks_like_one(text, command):
    assert split_command(text) == command


@pytest.mark.parametrize(
    ("text", "message"),
    [("//help", "/help"), ("//TODO\nx = 1", "//TODO\nx = 1"), ("// a", "// a"), ("a", "a")],
)
def test_two_slashes_send_one_where_that_would_be_a_command(text, message):
    assert as_message(text) == message


def test_every_command_is_in_the_help(start, demo):
    _, typed = start(demo)
    shown = typed("/help")
    assert all(f"/{name} " in shown for name in TABLE)


# --- blocks


@pytest.mark.parametrize(
    ("text", "opened", "content"),
    [
        ('"""', True, '"""'),
        ('"""a\nb', True, '"""a\nb'),
        ('"""\na\nb\n"""', False, "a\nb"),
        ('"""a"""', False, "a"),
        ('"""\ndef f():\n    """Doc."""', True, None),
        ('"""\ndef f():\n    """Doc."""\n"""', False, 'def f():\n    """Doc."""'),
        ('"""Doc."""\nimport os', False, '"""Doc."""\nimport os'),
        ('x = """', False, 'x = """'),
    ],
)
def test_blocks(text, opened, content):
    assert is_open(text) is opened
    assert content is None or without_quotes(text) == content


# --- the session


def test_watts_are_shown_when_a_meter_runs(start, demo):
    session, typed = start(demo, FakeMeter())
    assert " · 20.0 W · " in typed("import os")
    assert "J/token" in typed("/regen")
    assert " J by fake" in typed("/stats")
    assert session.totals.joules > 0


def test_a_meter_that_cannot_measure_is_told_of(start, demo):
    meter = NoMeter("the meter is broken")
    meter.source = "powermetrics"
    session, _ = start(demo, meter)
    greet(session)
    assert "the meter is broken" in session.screen._stream.getvalue()


def test_a_base_model_continues_each_text_on_its_own(start, base):
    session, typed = start(base)
    greet(session)
    assert "base model without a chat template" in session.screen._stream.getvalue()
    typed("abc")
    typed("abc")
    expected = generate(base.model, base.tokenizer, "abc", max_tokens=8)
    assert [m.content for m in session.talk.messages] == ["abc", expected] * 2
    assert typed("/undo") == "took back: abc\n"
    assert "takes no system prompt" in typed("/system x")
    assert "takes no system prompt" in typed("/system")
    typed("/regen")
    assert [m.content for m in session.talk.messages] == ["abc", expected]
    typed("/clear")
    assert "no answer to give again" in typed("/regen")


@pytest.mark.parametrize("name", ["demo", "base"])
def test_a_failed_regen_leaves_everything_as_it_was(start, tmp_path, request, monkeypatch, name):
    opened = request.getfixturevalue(name)
    file = tmp_path / "t.jsonl"
    session, typed = start(opened, transcript=Transcript(file))
    typed("abc")
    before = session.talk.messages

    def refuses(*_, **__):
        raise EdgeError("refused")

    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("edge.generate.conversation.stream_generate", refuses)
    assert typed("/regen") == "refused"
    assert session.talk.messages == before
    monkeypatch.undo()
    monkeypatch.setattr(type(opened.model.model), "__call__", fails)
    for text in ("/regen", "def"):
        with pytest.raises(RuntimeError):
            typed(text)
        assert session.talk.messages == before
        assert tuple(read_transcript(file)) == before
    assert len(before) == 2


def test_another_model_goes_on_with_the_conversation(start, demo, base):
    session, typed = start(demo, models={"base": base, "demo": demo})
    typed("import os")
    said = session.talk.messages
    assert "now base; 2 messages kept" in typed("/model base")
    assert not session.answers
    typed("/model demo")
    assert session.talk.messages == said


def test_a_setting_is_shown_and_refused_in_one_sentence(start, demo):
    session, typed = start(demo)
    assert typed("/set seed 7") == "seed is 7\n"
    assert session.settings.sampling.seed == 7
    assert typed("/set seed off") == "seed is off\n"
    assert typed("/set max_tokens 0").startswith("max_tokens is 0; choose")
    assert typed("/set top_k 1.5") == "top_k takes a whole number, not '1.5'."
    assert typed("/set nose 1").startswith("there is no 'nose' to set")
    assert "temperature" in typed("/set")


def test_a_file_that_does_not_fit_or_is_none_is_refused(start, demo, tmp_path):
    _, typed = start(demo)
    (tmp_path / "long.py").write_text("x = 1\n" * 2000)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert "and the model's context 1024" in typed(f"/read {tmp_path / 'long.py'}")
    assert "is no UTF-8 at byte 3" in typed(f"/read {tmp_path / 'latin'}")
    assert "is no file" in typed(f"/read {tmp_path}")
    assert "is missing" in typed(f"/read {tmp_path / 'gone'}")
    assert "no file waits" in typed("/read")


def test_a_fence_is_longer_than_those_of_the_file():
    assert as_block("a.md", "````\nx\n````") == "a.md:\n`````md\n````\nx\n````\n`````"


def test_a_hole_may_be_in_a_file(start, demo, tmp_path):
    _, typed = start(demo)
    (tmp_path / "a.py").write_text("for key, value in d.\n")
    assert "ended by" in typed(f"/fim {tmp_path / 'a.py'}:1")
    assert "names no line" in typed("/fim a.py")


HOLE = "/fim import os\n\ndef f(path):\n    <CURSOR>\n"


def test_a_middle_is_printed_as_it_comes(start, demo, monkeypatch):
    session, typed = start(demo, kv_bits=8)
    pieces = []
    write = session.screen.write
    monkeypatch.setattr(session.screen, "write", lambda text: pieces.append(text) or write(text))
    shown = typed(HOLE)
    assert session.completer._source.cache.layers[0].bits == 8
    *middle, _note = filter(None, (piece.strip("\n") for piece in pieces))
    assert len(middle) > 1
    assert shown.startswith(
        session.completer.complete("import os\n\ndef f(path):\n    ", "\n").text
    )


def test_ctrl_c_keeps_what_came_of_a_middle(start, demo, monkeypatch):
    session, typed = start(demo)
    whole = typed(HOLE)
    write = session.screen.write

    def write_and_interrupt(text):
        write(text)
        if text:
            monkeypatch.undo()
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(session.screen, "write", write_and_interrupt)
    came, _, note = typed(HOLE).rstrip("\n").rpartition("\n")
    assert note == "stopped by you"
    assert came
    assert whole.startswith(came)


def test_a_base_model_says_that_it_takes_no_system_prompt(start, base):
    session, _ = start(base, system="Be short.")
    greet(session)
    assert "takes no system prompt, so yours is left out" in session.screen._stream.getvalue()


def test_the_system_prompt_comes_back_from_a_base_model(start, demo, base):
    session, typed = start(demo, models={"base": base, "demo": demo})
    typed("/system Be short.")
    assert "so yours is left out" in typed("/model base")
    typed("/model demo")
    assert session.talk.system == "Be short."
    typed("/system off")
    assert "left out" not in typed("/model base")


def test_a_session_goes_on_with_a_transcript(start, demo, tmp_path):
    file = tmp_path / "t.jsonl"
    write_transcript(file, [Message("user", "a"), Message("assistant", "b")])
    session, typed = start(demo, transcript=Transcript(file), system="s")
    greet(session)
    assert f"going on with the 2 messages of {file}" in session.screen._stream.getvalue()
    typed("import os")
    assert read_transcript(file) == list(session.talk.messages)
    assert [m.content for m in session.talk.messages[:4]] == ["s", "a", "b", "import os"]
    assert "undo" not in file.read_text()


def test_a_transcript_follows_every_command(start, demo, base, tmp_path):
    file = tmp_path / "t.jsonl"
    models = {"demo": demo, "base": base}
    session, typed = start(demo, models=models, transcript=Transcript(file))
    commands = (
        "import os", "import re", "/undo", "/system Be short.", "/regen", "/model base", "abc",
        "/model demo", "/system off", f"/save {tmp_path / 'copy'}", "/clear", "x",
        f"/load {tmp_path / 'copy'}",
    )  # fmt: skip
    for text in commands:
        typed(text)
        assert read_transcript(file) == list(session.talk.messages), text
    assert [m.content for m in session.talk.messages[::2]] == ["import os", "abc"]


def test_a_question_is_written_before_its_answer(start, demo, tmp_path, monkeypatch):
    file, seen = tmp_path / "t.jsonl", []
    session, typed = start(demo, transcript=Transcript(file))
    monkeypatch.setattr(session.screen, "write", lambda _: seen.append(read_transcript(file)))
    typed("import os")
    assert seen[0] == [Message("user", "import os")]


@pytest.mark.parametrize("end", [EdgeError, KeyboardInterrupt, RuntimeError, SystemExit])
def test_the_transcript_is_closed_however_the_chat_ends(start, demo, tmp_path, end):
    session, typed = start(demo, transcript=Transcript(tmp_path / "t.jsonl"))
    with contextlib.suppress(end), contextlib.closing(session):
        typed("import os")
        assert session.transcript._file is not None
        raise end("x")
    assert session.transcript._file is None


def test_what_a_message_cannot_be_leaves_the_loop_running(start, demo):
    session, _ = start(demo)
    texts = iter(["x " * 3000, "", "/nothing", "/exit", "never read"])

    class Typed:
        def read(self):
            return next(texts)

    run_loop(session, Typed())
    shown = session.screen._stream.getvalue()
    assert "context ends at 1024" in shown
    assert "there is no command /nothing" in shown
    assert next(texts) == "never read"


# --- where state is kept


def test_the_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    assert state_folder() == tmp_path / "s" / "edge"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # to be ignored, says the specification
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert state_folder() == tmp_path / ".local" / "state" / "edge"
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert state_folder() == tmp_path / "Library" / "Application Support" / "edge"


def test_the_model_in_use_is_resident_until_the_end(start, demo, base, monkeypatch):
    seen = []

    @contextlib.contextmanager
    def wired(need_bytes):
        seen.append(need_bytes)
        yield
        seen.append(0)

    monkeypatch.setattr("edge.chat.session.wired", wired)
    models = {name: replace(m, running_bytes=n) for name, m, n in (("a", demo, 7), ("b", base, 9))}
    session, typed = start(models["a"], models=models)
    typed("/model b")
    assert seen == [7, 0, 9]
    session.close()
    assert seen == [7, 0, 9, 0]

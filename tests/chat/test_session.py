"""The loop and its commands without a terminal, on real models."""

import io
import time
from dataclasses import replace

import pytest

import edge
from edge.chat.commands import TABLE, as_message, split_command
from edge.chat.repl import greet, is_open, run_loop, state_folder, take, without_quotes
from edge.chat.screen import Screen
from edge.chat.session import Opened, Session, Settings
from edge.convert.sources.find import DEMO_PATH
from edge.errors import EdgeError
from edge.generate.sampling import GREEDY
from edge.generate.stream import generate
from edge.generate.transcript import Transcript, read_transcript
from edge.power.choose import NoMeter
from tests.bench.fakes import FakeMeter
from tests.support.talk import resident_bytes
from tests.support.tiny import PLAIN, write_checkpoint


@pytest.fixture(scope="module")
def demo():
    return Opened("demo", *edge.load(DEMO_PATH))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = write_checkpoint(tmp_path_factory.mktemp("base"), PLAIN)
    return Opened("base", *edge.load(path))


@pytest.fixture
def start(demo, base):
    """A session and a function that types a text and gives what was printed."""

    def make(opened=demo, meter=None, transcript=None, models=None, **settings):
        stream = io.StringIO()
        session = Session(
            opened=opened,
            settings=Settings(GREEDY, **{"max_tokens": 8, **settings}),
            screen=Screen(stream),
            meter=meter or NoMeter("none"),
            open_model=(models or {"demo": demo, "base": base}).__getitem__,
            transcript=transcript or Transcript(),
        )

        def typed(text):
            stream.seek(0)
            stream.truncate()
            try:
                (greet(session) if text is greet else take(session, text))
            except EdgeError as error:
                return str(error)
            return stream.getvalue()

        return session, typed

    return make


def contents(session):
    return [message.content for message in session.talk.messages]


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/help", ("help", "")),
        ("/SET  top_p 1 ", ("set", "top_p 1")),
        ("/system a\nb", ("system", "a\nb")),
        ("/usr/bin/x", None),
        ("// a comment", None),
        ("/undo\nand more", None),
        ("/* C */", None),
        (" /help", None),
        ("/", None),
        ("//TODO\nx = 1", None),
    ],
)
def test_a_command_looks_like_one(text, command):
    assert split_command(text) == command
    assert as_message(text) == text
    assert as_message(f"/{text}") == (f"/{text}" if command is None else text)


@pytest.mark.parametrize(
    ("text", "opened", "content"),
    [
        ('"""a\nb', True, '"""a\nb'),
        ('"""\na\nb\n"""', False, "a\nb"),
        ('"""a"""', False, "a"),
        ('"""\ndef f():\n    """Doc."""', True, None),
        ('"""\ndef f():\n    """Doc."""\n"""', False, 'def f():\n    """Doc."""'),
        ('"""Doc."""\nimport os', False, '"""Doc."""\nimport os'),
    ],
)
def test_blocks(text, opened, content):
    assert is_open(text) is opened
    assert content is None or without_quotes(text) == content


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/set seed 7", "seed is 7\n"),
        ("/set seed off", "seed is off\n"),
        ("/set max_tokens 0", "max_tokens is 0; choose 1 or more, or off."),
        ("/set top_k 1.5", "top_k takes a whole number, not '1.5'."),
        ("/set nose 1", "there is no 'nose' to set; choose one of temperature, "),
        ("/set top_p 2", "the sampling value top_p is 2.0"),
        ("/stat", "there is no command /stat; did you mean /stats? "),
        ("/clear now", "/clear takes nothing after it; leave out 'now'."),
        ("/undo", "there is nothing to take back"),
        ("/load {}/gone", "{}/gone is missing"),
        ("/set", "  temperature         0"),
        ("/read", "no file waits"),
        ("/read {}/long.py", "{}/long.py has 8011 tokens and the model's context 1024"),
        ("/read {}/gone", "{}/gone is missing"),
        ("/save", "/save needs FILE, to write the conversation to a file."),
        ("/save {}/x", "there is nothing to save"),
        ("/fim", "/fim needs HOLE, to fill PREFIX<CURSOR>SUFFIX or FILE:LINE"),
        ("/fim a.py", "'a.py' has no line number"),
        ("/fim {}/a.py:1", ""),
        ("/model", "demo\n"),
        ("/system", "there is no system prompt"),
    ],
)
def test_what_a_command_says(start, tmp_path, text, shown):
    _, typed = start()
    (tmp_path / "long.py").write_text("x = 1\n" * 2000)
    (tmp_path / "a.py").write_text("for key, value in d.\n")
    assert typed(text.format(tmp_path)).startswith(shown.format(tmp_path))


def test_every_command_is_in_the_help(start):
    shown = start()[1]("/help")
    assert all(f"/{name} " in shown for name in TABLE)


def test_a_middle_is_printed_as_it_comes(start, monkeypatch):
    session, typed = start(kv_bits=8)
    pieces, write, prefix = [], session.screen.write, "import os\n\ndef f(path):\n    "
    monkeypatch.setattr(session.screen, "write", lambda text: pieces.append(text) or write(text))
    shown = typed(f"/fim {prefix}<CURSOR>\n")
    assert session.completer.source.cache.layers[0].bits == 8
    assert shown.startswith(session.completer.complete(prefix, "\n").text)
    assert sum(bool(piece.strip("\n")) for piece in pieces) > 2


def test_watts_are_shown_when_a_meter_runs_and_why_it_cannot(start):
    _, typed = start(meter=FakeMeter(time, 20.0))
    assert " · 20.0 W · " in typed("import os")
    assert "J/token" in typed("/regen")
    assert " J by fake" in typed("/stats")
    meter = NoMeter("the meter is broken")
    meter.source = "powermetrics"
    assert "the meter is broken" in start(meter=meter)[1](greet)


def test_a_base_model_continues_each_text_on_its_own(start, base):
    session, typed = start(base, system="Be short.")
    shown = typed(greet)
    assert "base model without a chat template" in shown
    assert "takes no system prompt, so yours is left out" in shown
    typed("abc")
    typed("abc")
    expected = generate(base.model, base.tokenizer, "abc", max_tokens=8)
    assert contents(session) == ["abc", expected] * 2
    assert typed("/undo") == "took back: abc\n"
    assert typed("/system x") == typed("/system")
    assert "takes no system prompt" in typed("/system")
    typed("/regen")
    assert contents(session) == ["abc", expected]
    typed("/clear")
    assert "no answer to give again" in typed("/regen")


def test_another_model_goes_on_with_the_conversation(start):
    session, typed = start()
    typed("/system Be short.")
    typed("import os")
    said = session.talk.messages
    shown = typed("/model base")
    assert "now base; 2 messages kept" in shown and "so yours is left out" in shown
    assert session.talk.is_base
    typed("/model demo")
    assert session.talk.messages == said
    typed("/system off")
    assert "left out" not in typed("/model base")


def test_a_transcript_follows_every_command(start, tmp_path):
    file = tmp_path / "t.jsonl"
    session, typed = start(transcript=Transcript(file))
    copy = tmp_path / "copy"
    commands = f"""import os|import re|/undo|/system Be short.|/regen|/model base|abc|/model demo
        |/system off|/save {copy}|/clear|x|/load {copy}"""
    for text in map(str.strip, commands.split("|")):
        typed(text)
        assert read_transcript(file) == list(session.talk.messages), text
    assert contents(session)[::2] == ["import os", "abc"]


def test_what_a_message_cannot_be_leaves_the_loop_running(start):
    session, _ = start()
    texts = iter(["x " * 3000, "", "/nothing", "/exit", "never read"])
    run_loop(session, lambda: next(texts))
    shown = session.screen._stream.getvalue()
    assert "context ends at 1024" in shown
    assert "there is no command /nothing" in shown
    assert next(texts) == "never read"


def test_the_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    assert state_folder() == tmp_path / "s" / "edge"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # to be ignored, says the specification
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert state_folder() == tmp_path / ".local" / "state" / "edge"
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert state_folder() == tmp_path / "Library" / "Application Support" / "edge"


def test_the_model_in_use_is_resident_until_the_end(start, demo, base, tmp_path, monkeypatch):
    seen = resident_bytes(monkeypatch)
    models = {name: replace(m, running_bytes=n) for name, m, n in (("a", demo, 7), ("b", base, 9))}
    session, typed = start(models["a"], transcript=Transcript(tmp_path / "t"), models=models)
    typed("/model b")
    typed("abc")
    assert seen == [7, 0, 9]
    session.close()
    assert seen == [7, 0, 9, 0]

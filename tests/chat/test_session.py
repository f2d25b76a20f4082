"""The loop, its commands and the figures of an answer, without a terminal, on real models."""

import io
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from prompt_toolkit.history import InMemoryHistory

import edge
from edge.chat.commands import TABLE, as_message, split_command
from edge.chat.repl import (
    _open_history,
    greet,
    handle,
    is_open,
    run_loop,
    state_folder,
    without_quotes,
)
from edge.chat.screen import Screen
from edge.chat.session import LoadedModel, Session, Settings, Turn, status_line, summarise
from edge.errors import EdgeError
from edge.generate.sampling import GREEDY
from edge.generate.stream import Stats, TextEvent, TokenClock, generate
from edge.generate.transcript import Transcript, read_transcript
from edge.power.choose import NoMeter
from edge.power.meter import Sample
from tests.bench.fakes import FakeMeter
from tests.support.talk import resident_bytes
from tests.support.tiny import PLAIN, write_checkpoint


@pytest.fixture(scope="module")
def demo():
    return LoadedModel("demo", *edge.load("demo"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = write_checkpoint(tmp_path_factory.mktemp("base"), PLAIN)
    return LoadedModel("base", *edge.load(path))


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
                (greet(session) if text is greet else handle(session, text))
            except EdgeError as error:
                return str(error)
            return stream.getvalue()

        return session, typed

    return make


def contents(session):
    return [message.content for message in session.talk.messages]


@pytest.mark.parametrize(
    ("text", "command"),
    [("/SET  top_p 1 ", ("set", "top_p 1")), ("/system a\nb", ("system", "a\nb")),
     *((text, None) for text in ("/usr/bin/x", "// a comment", "/undo\nand more", " /help", "/",
                                 "//TODO\nx = 1"))],
)  # fmt: skip
def test_commands_are_told_from_messages(text, command):
    assert split_command(text) == command
    assert as_message(text) == text
    assert as_message(f"/{text}") == (f"/{text}" if command is None else text)


@pytest.mark.parametrize(
    ("text", "opened", "content"),
    [
        ('"""a\nb', True, '"""a\nb'),
        ('"""\na\nb\n"""', False, "a\nb"),
        ('"""\ndef f():\n    """Doc."""\n"""', False, 'def f():\n    """Doc."""'),
        ('"""Doc."""\nimport os', False, '"""Doc."""\nimport os'),
    ],
)
def test_a_block_ends_with_its_quotes(text, opened, content):
    assert (is_open(text), without_quotes(text)) == (opened, content)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/set seed off", "seed is off\n"),
        ("/set max_tokens 0", "max_tokens is 0; choose 1 or more, or off."),
        ("/set top_k 1.5", "top_k takes a whole number, not '1.5'."),
        ("/set nose 1", "there is no 'nose' to set; choose one of temperature, "),
        ("/set top_p 2", "the sampling value top_p is 2.0"),
        ("/set", "  temperature         0"),
        ("/stat", "/stat is not a command; did you mean /stats? "),
        ("/clear now", "/clear takes nothing after it; leave out 'now'."),
        ("/save", "/save needs FILE, to write the conversation to FILE.md or FILE.jsonl."),
        ("/save {}/x", "there is nothing to save"),
        ("/undo", "there is nothing to take back"),
        ("/load {}/gone", "{}/gone is missing"),
        ("/read", "no file waits"),
        ("/read {}/long.py", "{}/long.py has 8011 tokens and the model's context 1024"),
        ("/fim {}/a.py:1", ""),
        ("/model", "demo\n"),
        ("/system", "there is no system prompt"),
        ("/help", "  /help "),
    ],
)
def test_the_output_of_a_command(start, tmp_path, text, shown):
    (tmp_path / "long.py").write_text("x = 1\n" * 2000)
    (tmp_path / "a.py").write_text("for key, value in d.\n")
    out = start()[1](text.format(tmp_path))
    assert out.startswith(shown.format(tmp_path))
    assert text != "/help" or all(f"/{name} " in out for name in TABLE)


def test_a_middle_is_printed_as_it_is_generated(start, monkeypatch):
    session, typed = start(kv_bits=8)
    pieces, write, prefix = [], session.screen.write, "import os\n\ndef f(path):\n    "
    monkeypatch.setattr(session.screen, "write", lambda text: pieces.append(text) or write(text))
    shown = typed(f"/fim {prefix}<CURSOR>")
    assert session.completer.source._cache[0].bits == 8
    session.completer.source.reset()
    assert shown.startswith(session.completer.complete(prefix, "").text)
    assert sum(bool(piece.strip("\n")) for piece in pieces) > 2


def test_power_is_shown(start):
    _, typed = start(meter=FakeMeter(time, 20.0))
    assert " · 20.0 W · " in typed("import os")
    assert "J/token" in typed("/regen")
    assert " J by fake" in typed("/stats")


def test_a_base_model_continues_each_text_on_its_own(start, base):
    session, typed = start(base, system="Be short.")
    shown = typed(greet)
    assert "base model without a chat template" in shown
    assert "takes no system prompt, so yours is left out" in shown
    typed("abc")
    typed("abc")
    expected = generate(base.model, base.tokenizer, "abc", max_tokens=8)
    assert contents(session) == ["abc", expected] * 2
    assert "left out" not in typed("a" * 250) and typed("/undo")
    assert typed("/undo") == "took back: abc\n"
    assert typed("/system x") == typed("/system")
    assert "takes no system prompt" in typed("/system")
    typed("/regen")
    assert contents(session) == ["abc", expected]
    typed("/clear")
    assert "no answer to give again" in typed("/regen")


def test_a_transcript_follows_every_command(start, tmp_path):
    file, copy = tmp_path / "t.jsonl", tmp_path / "copy.jsonl"
    session, typed = start(transcript=Transcript(file))
    commands = f"""import os|import re|/undo|/system Be short.|/regen|/model base|abc|/model demo
        |/system off|/save {copy}|/clear|x|/load {copy}|/system Be brief.|/model base|/model demo"""
    shown = {}
    for text in map(str.strip, commands.split("|")):
        shown[text] = typed(text)
        assert read_transcript(file) == list(session.talk.messages), text
    assert contents(session)[1::2] == ["import os", "abc"]
    assert "now base; 4 messages kept" in shown["/model base"]
    assert "so yours is left out" in shown["/model base"]


def test_a_conversation_is_saved_as_markdown(start, tmp_path):
    session, typed = start(system="Be short.")
    typed("import os")
    assert "is not a folder" in typed(f"/save {tmp_path}/gone/x.md")
    assert "needs an ending" in typed(f"/save {tmp_path}/x")
    (tmp_path / "x.md").write_text("# Mine")
    assert "is not a saved chat" in typed(f"/save {tmp_path}/x.md")
    assert [path.name for path in tmp_path.iterdir()] == ["x.md"]
    for _ in range(2):  # a saved chat is replaced
        assert "saved 3 messages" in typed(f"/save {tmp_path}/y.md")
    text = (tmp_path / "y.md").read_text()
    answer = session.talk.messages[-1].content.strip()
    assert text.startswith(
        f"## System\n\nBe short.\n\n## User\n\nimport os\n\n## Assistant\n\n{answer}"
    )


def test_errors_do_not_end_the_loop(start):
    session, _ = start()
    texts = iter(["x " * 3000, "", "/nothing", "/exit", "never read"])
    run_loop(session, lambda: next(texts))
    shown = session.screen._stream.getvalue()
    assert "context ends at 1024" in shown
    assert "/nothing is not a command" in shown
    assert next(texts) == "never read"


def test_the_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    assert state_folder() == tmp_path / "s" / "edge"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # which the specification says to ignore
    for system, folder in (("Linux", ".local/state"), ("Darwin", "Library/Application Support")):
        monkeypatch.setattr("platform.system", lambda system=system: system)
        assert state_folder() == tmp_path / folder / "edge"


def test_a_history_that_is_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "history")
    notices = []
    assert isinstance(_open_history(tmp_path / "history", notices.append), InMemoryHistory)
    assert "it is not a regular file" in notices[0]


def test_the_current_model_stays_resident_until_the_end(start, demo, base, monkeypatch):
    seen = resident_bytes(monkeypatch)
    models = {name: replace(m, running_bytes=n) for name, m, n in (("a", demo, 7), ("b", base, 9))}
    session, typed = start(models["a"], models=models)
    typed("/model b")
    typed("abc")
    assert seen == [7, 0, 9]
    session.close()
    assert seen == [7, 0, 9, 0]


LENGTH, ENDED = Turn(9, "length", 3, 0.1, 8.0), Turn(9, "stop token", 3, 0.1, 8.0)


@pytest.mark.parametrize(
    ("turn", "dropped", "max_tokens", "end"),
    [
        (Turn(42, "stop token", 10, 0.214, 38.14), 0, None,
         "42 tokens · 38.1 tok/s · first after 0.21 s · 1.9 GB · context 512/16384"),
        (Turn(1, "interrupted", None, None, None), 0, None,
         "1 token · 1.9 GB · context 512/16384 · stopped by you"),
        (LENGTH, 0, 9, " · cut at max_tokens"),
        (LENGTH, 0, 10, " · cut at the end of the context"),
        (ENDED, 1, None, " · 1 early turn left out"),
        (Turn(9, "stop token", 3, 0.1, 8.0, 18.24, 0.349), 0, None, " · 18.2 W · 0.35 J/token"),
        (replace(ENDED, empty=True), 0, None, " · the answer is empty"),
    ],
)  # fmt: skip
def test_the_status_line(turn, dropped, max_tokens, end):
    talk = SimpleNamespace(context_tokens=512, context_limit=16384, dropped_turns=dropped)
    shown = status_line(turn, 1_910_000_000, talk, max_tokens)
    assert shown.endswith(end) and shown.startswith(f"{turn.generated_tokens} token")


@pytest.mark.parametrize("covered", [1, 0.5])
def test_joules_per_token_need_a_meter_that_covers_the_answer(covered):
    clock = TokenClock()
    clock.count(3)
    events = [TextEvent("x", (), None, None), TextEvent("", (), "length", Stats(5, 3, 0, 0, 1))]
    length_ns = clock.last_ns - clock.begin_ns
    end_ns = clock.begin_ns + max(1, int(length_ns * covered))
    joules = {"CPU": 20.0 * (end_ns - clock.begin_ns) / 1e9}
    turn = summarise(clock, events, [Sample(clock.begin_ns, end_ns, joules)])
    assert (turn.stopped_by, turn.prompt_tokens, turn.empty) == ("length", 5, False)
    assert turn.power_w == pytest.approx(20.0)
    whole = pytest.approx(20.0 * length_ns / 1e9 / 3)
    assert turn.joules_per_token == (whole if covered == 1 else None)

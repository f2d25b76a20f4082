"""`edge chat` as a script calls it."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import edge
from edge.cli.main import main
from edge.generate.conversation import Conversation
from edge.generate.stream import generate
from edge.generate.transcript import Message, Transcript, read_transcript
from tests.support.tiny import PLAIN, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
DEMO = Path(edge.__file__).parent / "data" / "demo"
QUESTION = "import os"
STATUS = re.compile(r"\d+ tokens? · .*context \d+/1024.*\n")


@pytest.fixture(scope="module")
def demo():
    return edge.load(DEMO)


@pytest.fixture
def chat(capfdbinary, monkeypatch):
    """Runs the command greedily; exit code, text on stdout, text on stderr."""

    def run(*words, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(os.fdopen(os.dup(1), "wb")))
        code = main(["chat", *map(str, words), "--temperature", "0", "-n", "30"])
        out, errors = capfdbinary.readouterr()
        return code, out.decode(), errors.decode()

    return run


def answer(demo, text, **options):
    events = Conversation(*demo, **options).ask(text, max_tokens=30)
    return "".join(event.text for event in events)


def as_line(text):
    return text if text.endswith("\n") else text + "\n"


def test_the_answer_is_on_stdout_and_the_figures_are_on_stderr(chat, demo):
    code, out, errors = chat("-p", QUESTION)
    assert (code, out) == (0, as_line(answer(demo, QUESTION)))
    assert STATUS.fullmatch(errors)
    assert chat("-p", QUESTION, "--quiet") == (0, out, "")


def test_stdin_is_answered_and_stands_after_a_prompt(chat, demo):
    assert chat(stdin=b"\xef\xbb\xbfimport os")[1] == as_line(answer(demo, QUESTION))
    both = chat("-p", "x = 1", stdin=b"import os\n")
    assert both[1] == as_line(answer(demo, "x = 1\n\nimport os\n"))


def test_a_system_prompt_is_sent(chat, demo):
    out = chat("-p", QUESTION, "--system", "import re")[1]
    assert out == as_line(answer(demo, QUESTION, system="import re"))


def test_json_is_one_document(chat, demo):
    _, out, errors = chat("-p", QUESTION, "-o", "json")
    document = json.loads(out)
    assert document["text"] == answer(demo, QUESTION)
    assert {"model", "tokens", "finish", "ttft_s", "decode_tok_s", "power_w"} <= set(document)
    assert STATUS.fullmatch(errors)


def test_lookup_changes_no_answer(chat):
    assert chat("-p", QUESTION, "--no-lookup")[1] == chat("-p", QUESTION, "--lookup")[1]


def test_a_transcript_is_written_where_it_is_wanted(chat, demo, tmp_path):
    chat("-p", QUESTION, "--transcript", tmp_path / "t.jsonl")
    assert [m.content for m in read_transcript(tmp_path / "t.jsonl")] == [
        QUESTION,
        answer(demo, QUESTION),
    ]


def test_a_base_model_continues_the_text_and_says_so(chat, tmp_path):
    path = write_checkpoint(tmp_path / "base", PLAIN)
    code, out, errors = chat(path, "-p", "abc")
    assert code == 0
    assert out == as_line(generate(*edge.load(path), "abc", max_tokens=30))
    assert "base model without a chat template" in errors
    assert chat(path, "-p", "abc", "-q")[2] == ""


@pytest.mark.parametrize(
    ("words", "stdin", "sentence"),
    [
        ((), b"", "there is nothing to answer"),
        (("-p", ""), b" \n", "there is nothing to answer"),
        ((), b"caf\xe9", "stdin is no UTF-8 at byte 3"),
        (("-p", os.fsdecode(b"caf\xe9")), b"", "-p is no UTF-8"),
        (("-p", "x " * 2000), b"", "context ends at 1024"),
        (("-p", "x", "--top-p", "0"), b"", "top_p is 0.0"),
        (("/nowhere/at/all", "-p", "x"), b"", "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_is_one_sentence(chat, words, stdin, sentence):
    code, out, errors = chat(*words, stdin=stdin)
    assert (code, out) == (1, "")
    assert errors.startswith("edge chat: ")
    assert sentence in errors
    assert errors.count("\n") == 1


def process(*words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "edge", "chat", *words, "--temperature", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **options,
    )


def test_ctrl_c_prints_what_came_and_exits_with_130():
    running = process("-p", "def f(x):\n    return", stdout=subprocess.PIPE)
    first = os.read(running.stdout.fileno(), 1)
    running.send_signal(signal.SIGINT)
    out, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert (first + out).endswith(b"\n")
    assert b"stopped by you" in errors
    assert b"Traceback" not in errors


def test_a_reader_that_goes_away_is_no_error_text():
    running = process("-p", "def f(x):\n    return", stdout=subprocess.PIPE)
    os.read(running.stdout.fileno(), 1)
    running.stdout.close()
    errors = running.stderr.read()
    assert (running.wait(60), errors) == (1, b"")
    running.stderr.close()


def test_an_existing_transcript_goes_on(chat, tmp_path):
    file = tmp_path / "t.jsonl"
    chat("-p", QUESTION, "--transcript", file, "--system", "s")
    first = read_transcript(file)
    assert first[0].content == "s"
    _, _, errors = chat("-p", "import re", "--transcript", file)
    assert errors.startswith(f"going on with the 3 messages of {file}\n")
    both = read_transcript(file)
    assert both[:3] == first
    assert both[3].content == "import re"


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_a_transcript_is_closed_however_the_answer_ends(chat, tmp_path, monkeypatch, failure):
    closed, close = [], Transcript.close

    def closes(transcript):
        close(transcript)
        closed.append(transcript._file)

    def fails(*_):
        raise failure

    monkeypatch.setattr(Transcript, "close", closes)
    if failure is not None:
        monkeypatch.setattr("edge.chat.one_shot._follow", fails)
    with contextlib.suppress(RuntimeError, KeyboardInterrupt):
        chat("-p", QUESTION, "--transcript", tmp_path / "t.jsonl")
    assert closed == [None]
    said = read_transcript(tmp_path / "t.jsonl")
    assert said[:1] == ([] if failure else [Message("user", QUESTION)])


def test_a_file_that_is_no_transcript_is_refused_before_anything_is_said(chat, tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    code, out, errors = chat("-p", QUESTION, "--transcript", tmp_path / "a.py")
    assert (code, out) == (1, "")
    assert "a.py is no transcript of a chat" in errors


def test_a_base_model_says_that_the_system_prompt_is_left_out(chat, tmp_path):
    path = write_checkpoint(tmp_path / "base", PLAIN)
    _, out, errors = chat(path, "-p", "abc", "--system", "s", "-q")
    assert errors == (
        "edge chat: a base model takes no system prompt, so yours is left out; begin your text "
        "with it.\n"
    )
    assert out == chat(path, "-p", "abc", "-q")[1]

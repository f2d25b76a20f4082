"""`edge chat` as a script calls it."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

import edge
from edge.generate.conversation import Conversation
from edge.generate.stream import generate
from edge.generate.transcript import read_transcript
from edge.power.choose import NoMeter
from tests.cli.test_cli import ENVIRONMENT
from tests.support.tiny import PLAIN, write_checkpoint

QUESTION = "import os"
STATUS = re.compile(r"\d+ tokens? · .*context \d+/1024.*\n")


@pytest.fixture(scope="module")
def demo():
    return edge.load("demo")


@pytest.fixture
def chat(command):
    return lambda *words, **more: command("chat", *words, "--temperature", "0", "-n", "30", **more)


def answer(demo, text, **options):
    events = Conversation(*demo, **options).ask(text, max_tokens=30)
    return "".join(event.text for event in events)


def as_line(text):
    return text if text.endswith("\n") else text + "\n"


def test_answer_goes_to_stdout_and_statistics_to_stderr(chat, demo):
    code, out, errors = chat("-p", QUESTION)
    assert (code, out) == (0, as_line(answer(demo, QUESTION)))
    assert STATUS.fullmatch(errors)
    assert chat("-p", QUESTION, "--quiet") == (0, out, "")
    assert chat("-p", QUESTION, "--no-lookup")[1] == chat("-p", QUESTION, "--lookup")[1] == out
    _, out, errors = chat("-p", QUESTION, "-o", "json")
    document = json.loads(out)
    assert document["text"] == answer(demo, QUESTION)
    assert {"model", "generated_tokens", "stopped_by", "ttft_s", "power_w"} <= set(document)
    assert STATUS.fullmatch(errors)


def test_a_meter_that_is_missing_is_said_once(chat, monkeypatch):
    monkeypatch.setattr("edge.cli.chat.choose_meter", lambda *_: NoMeter("x"))
    warning, _ = chat("-p", QUESTION, "--power", "auto")[2].splitlines()
    assert warning.startswith("edge chat: warning: power is not measured: no power meter")


def test_stdin_is_appended_to_the_prompt(chat, demo):
    assert chat(stdin=b"\xef\xbb\xbfimport os")[1] == as_line(answer(demo, QUESTION))
    both = chat("-p", "x = 1", stdin=b"import os\n")
    assert both[1] == as_line(answer(demo, "x = 1\n\nimport os\n"))


def test_base_model_continues_the_text_with_a_note(chat, tmp_path):
    path = write_checkpoint(tmp_path / "base", PLAIN)
    code, out, errors = chat(path, "-p", "abc")
    assert (code, out) == (0, as_line(generate(*edge.load(path), "abc", max_tokens=30)))
    assert errors.startswith(f"edge chat: {path} is a base model without a chat template")
    with_system = chat(path, "-p", "abc", "--system", "s", "-q")
    assert with_system[:2] == (0, out) and "yours is left out" in with_system[2]


@pytest.mark.parametrize(
    ("words", "stdin", "sentence"),
    [
        (("-p", ""), b" \n", "there is nothing to answer"),
        ((), b"caf\xe9", "stdin is not UTF-8 at byte 3"),
        (("-p", os.fsdecode(b"caf\xe9")), b"", "-p is not UTF-8"),
        (("-p", "x " * 2000), b"", "context ends at 1024"),
        (("/nowhere/at/all", "-p", "x"), b"", "/nowhere/at/all"),
        (("-p", "x", "--transcript", __file__), b"", "is not a transcript of a chat"),
    ],
)
def test_bad_input_is_one_error_line(command, words, stdin, sentence):
    error = command.refused("chat", *words, stdin=stdin)
    assert error.startswith("edge chat: ") and sentence in error


@pytest.fixture
def running():
    """A process with a long answer, whose first byte was read."""
    wildly = ("--temperature", "9", "--top-p", "1", "--top-k", "0", "--seed", "1")
    words = ("-p", "def f(x):\n    return", *wildly)
    process = subprocess.Popen(
        [sys.executable, "-m", "edge", "chat", *words],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.first = os.read(process.stdout.fileno(), 1)
    yield process
    process.stderr.close()


def test_ctrl_c_keeps_the_beginning_and_exits_with_130(running):
    running.send_signal(signal.SIGINT)
    out, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert (running.first + out).endswith(b"\n")
    assert b"stopped by you" in errors
    assert b"Traceback" not in errors


def test_closed_pipe_prints_no_error(running):
    running.stdout.close()
    assert (running.stderr.read(), running.wait(60)) == (b"", 1)


def test_transcript_is_written_and_continued(chat, demo, tmp_path):
    file = tmp_path / "t.jsonl"
    chat("-p", QUESTION, "--transcript", file, "--system", "s")
    first = read_transcript(file)
    expected = ["s", QUESTION, answer(demo, QUESTION, system="s")]
    assert [m.content for m in first] == expected
    _, _, errors = chat("-p", "import re", "--transcript", file)
    assert errors.startswith(f"going on with the 3 messages of {file}\n")
    both = read_transcript(file)
    assert both[:3] == first
    assert both[3].content == "import re"

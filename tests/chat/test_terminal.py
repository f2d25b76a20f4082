"""`edge chat` on a terminal: keys in, a screen out."""

import os
import re
import signal
import sys
import termios
from pathlib import Path

import pytest

import edge
from edge.generate.conversation import Conversation
from edge.generate.transcript import read_transcript
from tests.support.talk import joined
from tests.support.terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "import os"  # has a short answer
ENDLESS = "def f(x):\n    return"
WILDLY = (
    "--temperature",
    "9",
    "--top-p",
    "1",
    "--top-k",
    "0",
    "--seed",
    "1",
)  # so that answers do not end
PASTED = f"\x1b[200~{ENDLESS}\x1b[201~"
SHORT = 24
HINT = "Ctrl-D or /exit leaves"
COLOUR = re.compile(rb"\x1b\[[0;]*[1-9][0-9;]*m")


@pytest.fixture(scope="module")
def answers():
    """The lines of the last answer to a list of questions, computed without a terminal."""
    demo = edge.load("demo")

    def ask(*questions):
        conversation = Conversation(*demo)
        texts = [joined(conversation.ask(question, max_tokens=SHORT)) for question in questions]
        return [line.rstrip() for line in texts[-1].rstrip("\n").split("\n")]

    return ask


@pytest.fixture
def chat(tmp_path):
    """Starts `edge chat` on the demo, greedily; its files are under tmp_path."""
    started = []

    def start(*words, **environment):
        command = [sys.executable, "-m", "edge", "chat", "demo", "--temperature", "0", *words]
        given = {"TERM": "xterm-256color", "XDG_STATE_HOME": str(tmp_path / "state"),
                 "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment}  # fmt: skip
        inherited = {
            k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")
        }
        terminal = Terminal(command, tmp_path, inherited | given)
        started.append(terminal)
        terminal.press("")
        return terminal

    yield start
    for terminal in started:
        terminal.close()


def saved(tmp_path):
    (transcript,) = (tmp_path / "state" / "edge" / "chats").glob("*.jsonl")
    return transcript


def is_status(line):
    return " tok/s · first after " in line and " · context " in line


def ask_endless(t):
    """Pastes a text of two lines, sends it, and waits for the answer to begin."""
    t.send(PASTED)
    t.wait_for("...     return")
    t.send("\r")
    t.wait(lambda: not t.shown[-1].startswith((">>>", "...")), "an answer")


def test_a_conversation(chat, answers, tmp_path):
    (tmp_path / "notes.txt").write_text("x = 1\n")
    t = chat("--system", "Be short.", "-n", str(SHORT))
    assert "demo · context 1024" in t.shown[0]
    t.enter("/system off")
    *answer, status = t.enter(QUESTION)
    assert answer == answers(QUESTION) and is_status(status)
    assert t.enter("/save talk.jsonl") == ["saved 2 messages to talk.jsonl"]
    assert "needs an ending" in t.enter("/save notes.txt")[0]
    t.enter("/clear")
    assert t.enter("/load talk.jsonl") == ["loaded 2 messages from talk.jsonl"]
    t.screen.reset()
    assert t.enter(QUESTION)[:-1] == answers(QUESTION, QUESTION)
    t.enter("/clear")
    assert "which go with your next message" in t.enter("/read notes.txt")[0]
    t.enter(QUESTION)
    t.type("/exit")
    assert t.leave("\r") == 0
    assert "the conversation is in" in " ".join(t.shown[-2:])
    assert (tmp_path / "notes.txt").read_text() == "x = 1\n"
    question, answer = read_transcript(saved(tmp_path))
    assert question.content == f"notes.txt:\n```txt\nx = 1\n```\n\n{QUESTION}"
    assert answer.role == "assistant"
    assert "+/exit" in (tmp_path / "state" / "edge" / "history").read_text()
    assert saved(tmp_path).stat().st_mode & 0o077 == 0


def test_keys(chat, tmp_path):
    t = chat("-n", "300", *WILDLY)
    # A paste of two lines waits for Enter; Ctrl-C in the answer keeps its beginning.
    ask_endless(t)
    t.send("\x03")
    t.wait_for("stopped by you")
    t.press("")
    t.enter(f"/set max_tokens {SHORT}")
    assert is_status(t.enter(QUESTION)[-1])
    assert [m.cut_off for m in read_transcript(saved(tmp_path))][:3] == [False, True, False]

    # Ctrl-C clears a line; without a line it says how to leave.
    t.type("half a thou")
    t.press("\x03")
    assert HINT not in "".join(t.shown)
    t.send("\x03")
    t.wait_for(HINT)
    t.press("")

    # A block in quotes, Alt-Enter, and slashes that are not a command.
    for line in ('"""', "/undo"):
        t.type(line)
        t.press("\r", "...")
    t.type('two"""')
    t.press("\r")
    t.type("/usr/bin/x")
    t.press("\x1b\r", "...")
    t.enter("end")
    t.enter("//help")
    said = [m.content for m in read_transcript(saved(tmp_path)) if m.role == "user"]
    assert said == [ENDLESS, QUESTION, "/undo\ntwo", "/usr/bin/x\nend", "/help"]

    # Completion of commands and of paths, and history.
    (tmp_path / "long-name.txt").write_text("x")
    t.send("/un")
    t.wait_for("take back the last message")
    t.press("\t", ">>> /undo")
    t.press("\x03")
    t.type("/read long")
    t.press("\t", ">>> /read long-name.txt")
    t.press("\x03")
    t.press("\x1b[A", ">>> //help")
    t.press("\x03")
    assert t.leave() == 0


def test_a_dumb_terminal_gets_no_escape_code(chat, answers, tmp_path):
    t = chat("-n", str(SHORT), "--no-history", TERM="dumb")
    *answer, status = t.enter(QUESTION)
    assert answer == answers(QUESTION) and is_status(status)
    assert any("transcript  none" in line for line in t.enter("/stats"))
    t.press('"""/undo\r', "...")
    t.enter('lines"""')
    t.interrupt_until(HINT)
    t.press("")
    assert t.leave() == 0
    assert b"\x1b" not in t.output
    assert not (tmp_path / "state").exists()


def test_without_colours_and_without_a_state_folder(chat, tmp_path):
    (tmp_path / "file").write_text("")
    t = chat("-n", "8", NO_COLOR="1", XDG_STATE_HOME=str(tmp_path / "file"))
    notice = " ".join(t.shown)
    assert "what you type is not kept" in notice and "--no-history" in notice
    lines = t.enter(QUESTION)
    assert any(is_status(line) for line in lines)
    assert "cannot be written" in " ".join(lines)
    assert "cannot be written" not in " ".join(t.enter(QUESTION))  # one warning
    t.press("\x1b[A", f">>> {QUESTION}")
    assert not COLOUR.search(t.output)


def test_keys_during_an_answer_are_kept_and_not_echoed(chat):
    t = chat(*WILDLY)
    t.send("\x1a")  # Ctrl-Z; a session leader is not stopped, so it goes on at once
    ask_endless(t)
    # The settings as a shell restores them, and the signal of its `fg`.
    settings = termios.tcgetattr(t._master)
    settings[3] |= termios.ECHO
    termios.tcsetattr(t._master, termios.TCSANOW, settings)
    t.process.send_signal(signal.SIGCONT)
    t.wait(lambda: not termios.tcgetattr(t._master)[3] & termios.ECHO, "quiet terminal")
    t.send("/help")
    t.press("\x03", ">>> /help")
    assert sum("/help" in line for line in t.shown[2:]) == 1

"""Where a command begins and ends: streams that are closed or full, and Ctrl-C at any time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli import main as entry

ROOT = Path(__file__).resolve().parents[2]
CHAT = ("chat", "-p", "import os", "-n", "2", "--temperature", "0")
COMPLETE = ("complete", "--prefix", "import ", "-n", "2")


def shell(redirection, *words):
    """The command as a shell starts it, with its streams redirected."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "edge", *words],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        timeout=100,
        check=False,
    )


def test_ctrl_c_while_modules_are_imported_is_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "import_module", interrupted)
    assert entry.main(["convert", "--help"]) == 130
    assert entry.run_one("convert", "convert.py") == 130
    assert capsys.readouterr().err == "edge convert: interrupted\nconvert.py: interrupted\n"


@pytest.mark.parametrize("words", [CHAT, (*CHAT, "-o", "json"), COMPLETE])
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">&-", "stdout is closed"), (">/dev/full", "stdout cannot be written (No space left")],
)
def test_a_stdout_that_takes_nothing_is_one_sentence(words, redirection, reason):
    done = shell(redirection, *words)
    assert done.returncode == 1
    assert done.stderr.startswith(f"edge {words[0]}: {reason}")
    assert done.stderr.count("\n") == 1


def test_without_stdin_and_stderr_the_answer_is_the_same():
    plain = shell("", *CHAT)
    closed = shell("<&- 2>&-", *CHAT)
    assert (closed.returncode, closed.stdout) == (0, plain.stdout)
    assert plain.stdout

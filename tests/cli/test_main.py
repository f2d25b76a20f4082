"""Where a command begins and ends: help, wrong words, closed or full streams, Ctrl-C."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli import main as entry
from edge.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
CHAT = ("chat", "-p", "import os", "-n", "2", "--temperature", "0")
COMPLETE = ("complete", "--prefix", "import ", "-n", "2")
HEAVY = (
    *("mlx", "mlx_lm", "matplotlib", "transformers", "rich", "prompt_toolkit", "llama_cpp"),
    *("numpy", "jinja2"),
)


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


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([c, "--help"] for c in COMMANDS)])
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom edge.cli.main import main\n"
        f"try: main({words!r})\nexcept SystemExit as done: assert not done.code\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stderr.strip() == "[]"
    assert done.stdout.strip()


def test_every_command_is_listed(capsys):
    assert entry.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "said"), [([], "COMMAND is missing"), (["fly"], "there is no command 'fly'")]
)
def test_a_wrong_command_exits_with_2(words, said, capsys):
    assert entry.main(words) == 2
    assert f"edge: {said}; choose from convert, bench" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["convert.py", "bench.py"])
def test_the_scripts_are_the_commands(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit):
        entry.run_one(script.removesuffix(".py"), script)
    assert capsys.readouterr().out.startswith(f"usage: {script}")


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

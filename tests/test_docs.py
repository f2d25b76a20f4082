"""Commands and snippets in the README and docs/ run; docs/cli.md equals the parsers."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest

from edge.cli.main import COMMANDS, parser_of
from tests.cli.test_cli import ENVIRONMENT
from tests.support.profiles import ROOT
from tools.write_cli_reference import REFERENCE, reference

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("profiles/**/*.md")])
FENCE = re.compile(r"^(`{3,})(\w*)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
# Parts of commands that are parsed, if they are edge's, but not run, and why.
NOT_RUN = {
    "stabilityai/": "needs the network",
    "stable-code-3b.Q5_K_M": "needs the network",
    "smollm2": "tests/test_smollm2.py runs it where it is installed",
    "HumanEval": "needs the network",
    "http://": "needs a server",
    "edge serve": "runs until Ctrl-C",
    "mlx.launch": "needs several machines; tests/cli/test_together.py and test_fleet.py start it",
    "make": "sets up or runs for minutes",
    "activate": "is for a terminal",
    "pytest": "is a test run itself",
    "sudo": "needs root",
    "xcode-select": "is for macOS",
    "uv ": "installs",
    "pipx ": "installs",
    "edge power": "needs a meter",
    "notebook": "opens a browser",
}
# Options that make a command quick without changing what it is.
QUICK = {
    "bench": ["-r", "1", "--min-window", "0", "--cooldown", "0"],
    "eval": ["--rows", "mlx-int4", "gguf-q5_k_m", "--tokens", "128", "--window", "64"],
    "eval --fim": ["--samples", "2", "--max-tokens", "4", "--rows", "mlx-int4"],
}


def blocks(kind):
    return [
        pytest.param(body, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, (_, name, body) in enumerate(FENCE.findall(page.read_text(encoding="utf-8")))
        if name == kind
    ]


def commands(body):
    """Commands of a block; a quoted text may have several lines."""
    waiting = ""
    for line in body.splitlines():
        waiting += line + "\n"
        try:
            words = shlex.split(waiting, comments=True)
        except ValueError:  # an open quote
            continue
        if words:
            yield words, waiting.strip()
        waiting = ""
    assert not waiting


def edge_words(words):
    """Name and arguments of one of edge's commands, without redirections; else None."""
    words = words[: words.index("<")] if "<" in words else words
    if words[0] == "edge" and words[1] in COMMANDS:
        return words[1], words[2:]
    script = words[1].removesuffix(".py") if words[0] == "python" else ""
    return (script, words[2:]) if script in COMMANDS else None


@pytest.fixture(scope="module")
def desk(demo_out, tmp_path_factory):
    """A folder with what the commands name."""
    desk = tmp_path_factory.mktemp("desk")
    shutil.copytree(demo_out, desk / "models" / "demo")
    for name in ("convert.py", "bench.py", "profiles", "benchmarks", "tools"):
        (desk / name).symlink_to(ROOT / name)
    (desk / "src").mkdir()
    shutil.copy(ROOT / "edge" / "stats.py", desk / "src" / "app.py")
    (desk / "area.py").write_text("def area(r):\n    return 3.14 * r**2\n", encoding="utf-8")
    (desk / "buffer").write_text("def area(r):\n    return <CURSOR>\n", encoding="utf-8")
    (desk / "bin").mkdir()
    for name, program in (("edge", f"{sys.executable} -m edge"), ("python", sys.executable)):
        (desk / "bin" / name).write_text(f'#!/bin/sh\nexec {program} "$@"\n')
        (desk / "bin" / name).chmod(0o755)
    return desk


def test_the_reference_is_that_of_the_parsers():
    assert REFERENCE.read_text(encoding="utf-8") == reference()


@pytest.mark.parametrize("body", blocks("sh"))
def test_commands_run(body, desk):
    environment = ENVIRONMENT | {"PATH": f"{desk / 'bin'}:{ENVIRONMENT['PATH']}"}
    for words, text in commands(body):
        ours = edge_words(words)
        if ours:
            parser_of(ours[0]).parse_args(ours[1])
        is_terminals = ours and ours[0] == "chat" and "-p" not in ours[1]  # tests/chat has it
        if is_terminals or any(part in text for part in NOT_RUN):
            continue
        kind = " ".join([ours[0], *(["--fim"] if "--fim" in words else [])]) if ours else ""
        quick = shlex.join(QUICK.get(kind, []))
        command = text.partition("  #")[0].replace(" < ", f" {quick} < ")
        command = command if " < " in command else f"{command} {quick}"
        done = subprocess.run(
            ["bash", "-c", command], cwd=desk, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout, f"{command}: {done.stderr}"


@pytest.mark.parametrize("body", blocks("python"))
def test_a_snippet_prints_something(body, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", body], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() and not done.returncode, done.stderr

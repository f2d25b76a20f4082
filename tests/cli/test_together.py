"""Commands over two processes of mlx.launch, and the death of one."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from edge.cli import main
from tests.support.ranks import LAUNCH, ROOT, free_port, launch

QUESTION = "write a function that adds two numbers"
EDGE = (sys.executable, "-m", "edge")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def lines_until(stream, ends):
    """Text of a stream up to one of some ends."""
    text = ""
    while not text.endswith(ends):
        piece = os.read(stream.fileno(), 4096)
        assert piece, text
        text += piece.decode()
    return text


def rank_process(launcher, rank):
    for process in psutil.Process(launcher.pid).children(recursive=True):
        if "edge" in process.cmdline() and process.environ().get("MLX_RANK") == str(rank):
            return process
    raise AssertionError(rank)


def test_a_chat_answers_as_one_process_does_and_ends_when_a_rank_dies(tmp_path):
    home = ENVIRONMENT | {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    answer = subprocess.run(
        [*EDGE, "chat", "-p", QUESTION], env=home, capture_output=True, text=True, check=True
    ).stdout
    words = [LAUNCH, "-n", "2", "-p", str(free_port(2)), "--", *EDGE, "chat", "--no-history"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(words, env=home, start_new_session=True, **pipes) as launcher:
        try:
            lines_until(launcher.stdout, ">>> ")
            launcher.stdin.write(f"{QUESTION}\n".encode())
            launcher.stdin.flush()
            assert lines_until(launcher.stdout, ">>> ").startswith(answer)
            rank_process(launcher, 1).kill()
            launcher.wait(30)
            said = launcher.stderr.read().decode()
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
    assert "another device has ended, so this one ends too." in said
    assert "Node with rank 0 exited with code 1" in said


@pytest.mark.parametrize(("words", "code", "said"), [(["--help"], 0, ""), (["--hm"], 2, "--hm is")])
def test_only_the_first_process_prints_the_help(words, code, said, capsys, monkeypatch):
    monkeypatch.setenv("MLX_RANK", "1")
    monkeypatch.setattr(main, "GRACE_S", 0.0)
    assert main.main(["complete", *words]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err and bool(said) == bool(printed.err)


def test_what_follows_the_workers_of_a_benchmark_ends_with_it():
    words = "sys.argv[1:] = ['end'][int(os.environ['MLX_RANK']):]; sys.exit(follow.main())"
    assert launch("-c", f"import os, sys, edge; from edge.model import follow; {words}") == ("", "")

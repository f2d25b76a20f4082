"""A command in this process, with bytes on stdin."""

import io
import os

import pytest

from edge.cli.main import main


@pytest.fixture
def run_command(capfdbinary, monkeypatch):
    """Runs a command: exit code, bytes on stdout, text on stderr."""

    def run(*words, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(os.fdopen(os.dup(1), "wb")))
        code = main(list(map(str, words)))
        out, errors = capfdbinary.readouterr()
        return code, out, errors.decode()

    return run

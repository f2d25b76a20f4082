import io
import json
import os
import sys

import pytest

from edge.cli.main import main


class Command:
    """Runs a command in this process: exit code, text on stdout, text on stderr."""

    def __init__(self, capture, monkeypatch):
        self._capture, self._monkeypatch = capture, monkeypatch

    def __call__(self, *words, stdin=b""):
        stdout = io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), "utf-8")
        self._monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        self._monkeypatch.setattr("sys.stdout", stdout)
        try:
            code = main(list(map(str, words)))
        except SystemExit as stop:  # argparse
            code = stop.code
        sys.stdout.flush()
        out, err = self._capture.readouterr()
        return code, out.decode(), err.decode()

    def json(self, *words, code=0):
        """The document that is printed."""
        done, out, err = self(*words, "-o", "json")
        assert done == code, err
        return json.loads(out, parse_constant=pytest.fail)

    def refused(self, *words, stdin=b"", code=1):
        """The only line on stderr."""
        done, out, err = self(*words, stdin=stdin)
        assert (done, out) == (code, ""), err
        (line,) = err.splitlines()
        return line


@pytest.fixture
def command(capfdbinary, monkeypatch):
    return Command(capfdbinary, monkeypatch)

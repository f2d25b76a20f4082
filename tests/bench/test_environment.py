import json
import os
import sys

import pytest

from edge.bench import environment
from edge.bench.environment import Environment, open_environment
from edge.bench.runner import run_in_turns
from edge.bench.worker import PROTOCOL
from edge.device.software import software_versions
from edge.errors import EdgeError
from tests.bench.fakes import TARGET, job_of
from tests.support.profiles import ROOT

OURS = software_versions()


@pytest.fixture
def program(tmp_path):
    """program(*lines): an executable file."""

    def program(*lines):
        path = tmp_path / "python"
        path.write_text("\n".join(lines))
        path.chmod(0o755)
        return str(path)

    return program


def answers(protocol, software):
    about = json.dumps({"protocol": protocol, "software": software})
    return ["#!/bin/sh", f"echo '{about}'"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["#!/bin/sh", "echo it broke >&2; exit 3"], r"does not run edge \(it broke\)"),
        (["#!/bin/sh", "exit 3"], r"does not run edge \(exit code 3\)"),
        (["\x7fELF nothing"], "does not run as a Python interpreter .*format error"),
        (["#!/bin/sh", f'exec {sys.executable} -I "$@"'], "No module named 'edge'"),
        # What the worker of a version without --vs says to an empty stdin.
        (["#!/bin/sh", """echo '{"type":"Failed","reason":"truncated"}'"""], "too old for --vs"),
        (answers(99, OURS), f"speaks protocol 99, this one {PROTOCOL}"),
    ],
)
def test_an_interpreter_that_cannot_run_our_rows_is_refused(
    program, lines, message, monkeypatch, tmp_path
):
    if "-I" in lines[-1]:  # without the checkout and its environment
        monkeypatch.setattr(environment, "WORKER", ("", "-S", "-m", "edge.bench.worker"))
        monkeypatch.chdir(tmp_path)
    with pytest.raises(EdgeError, match=message):
        open_environment(program(*lines))


def test_a_missing_interpreter_is_refused():
    with pytest.raises(EdgeError, match="--vs /no/python is not a program; give the python of"):
        open_environment("/no/python")


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({}, "B"),
        ({"numpy": "1.0"}, "B"),
        ({"mlx": "0.31.0"}, "mlx 0.31.0"),
        ({"edge": "0.0.9", "mlx": "0.31.0", "mlx-lm": "0.30"}, "edge 0.0.9, mlx 0.31.0"),
    ],
)
def test_an_environment_is_named_by_what_differs(program, changed, name):
    found = open_environment(program(*answers(PROTOCOL, {**OURS, **changed})))
    assert (found.name, found.software) == (name, {**OURS, **changed})
    first, second = found.beside([(job_of("mlx", "m"), TARGET)])
    assert (first[0].arm, second[0].arm, second[0].path) == ("", name, "m")


def test_both_arms_take_turns_and_the_other_does_not_find_our_packages(
    program, demo_out, monkeypatch, tmp_path
):
    """An interpreter that adds the checkout itself, as an environment with edge would have it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/from/outside", str(ROOT)]))
    seen = tmp_path / "seen"
    lines = ["#!/bin/sh", f'echo "[$PYTHONPATH]" >> {seen}', f"export PYTHONPATH={ROOT}"]
    other = open_environment(program(*lines, f'exec {sys.executable} "$@"'))
    assert (other.name, other.software) == ("B", OURS)
    job = job_of("llama.cpp", demo_out / "gguf-q6_k.gguf")
    jobs = [each for each, _ in other.beside([(job, TARGET)])]
    outcomes = run_in_turns(jobs, 120, [lambda _: None] * 2)
    assert [outcome.failure for outcome in outcomes] == [None, None]
    assert [len(outcome.trials) for outcome in outcomes] == [3, 3]
    assert seen.read_text() == "[]\n[]\n"
    missing = Environment("/no/python", "B", {}).beside([(job, TARGET)])[1][0]
    (outcome,) = run_in_turns([missing], 60, [lambda _: None])
    assert "No such file" in outcome.failure

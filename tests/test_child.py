import subprocess
import sys

import pytest

from edge.child import run_child
from edge.errors import EdgeError
from tests.support.profiles import ROOT

MODULE = "tests.support.answers"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_an_answer_is_the_answer_whatever_else_was_printed():
    question = {"text": "ü\n", "numbers": [1, 2.5, None]}
    assert run_child(MODULE, question, 60, "answers") == {"heard": question}


@pytest.mark.parametrize(
    ("question", "limit_s", "words"),
    [
        ("fail", 60, r"answers could not be computed \(it is broken; mend it\.\)"),
        ("die", 60, r"its process was ended by SIGKILL"),
        ("hang", 0.2, "answers took more than 0.2 s"),
    ],
)
def test_a_failure_is_a_sentence(question, limit_s, words):
    with pytest.raises(EdgeError, match=words):
        run_child(MODULE, question, limit_s, "answers")


def test_a_failed_child_has_an_exit_code():
    run = subprocess.run([sys.executable, "-m", MODULE], input=b'"fail"', capture_output=True)
    assert (run.returncode, run.stdout) == (1, b"")

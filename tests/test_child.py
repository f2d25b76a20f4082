import os
import signal
import sys
import time

import pytest

from edge.child import child_main, run_child
from edge.errors import EdgeError
from tests.support.profiles import ROOT


def compute(question):
    print("printed by Python")
    os.write(1, b"printed by C\n")
    if question == "fail":
        raise EdgeError("it is broken; fix it.")
    if question == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if question == "hang":
        time.sleep(60)  # killed long before
    return {"question": question, "tf32": os.environ["MLX_ENABLE_TF32"]}


@pytest.fixture
def ask(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lambda question, limit_s=60, **how: run_child(__name__, question, limit_s, "X", **how)


def test_the_answer_is_returned_whatever_else_is_printed(ask):
    question = {"text": "ü\n", "numbers": [1, 2.5, None]}
    answer = ask(question, environment={"MLX_ENABLE_TF32": "2"})
    assert answer == {"question": question, "tf32": "2"}


@pytest.mark.parametrize(
    ("question", "limit_s", "words"),
    [
        ("fail", 60, r"^X could not be computed \(it is broken; fix it\.\)"),
        ("die", 60, r"its process was ended by SIGKILL"),
        ("hang", 0.2, "^X took more than 0.2 s"),
    ],
)
def test_a_failed_child_is_an_error_with_the_reason(question, limit_s, words, ask):
    with pytest.raises(EdgeError, match=words):
        ask(question, limit_s)


if __name__ == "__main__":
    sys.exit(child_main(compute))

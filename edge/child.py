"""Child processes: a JSON question on stdin, a JSON answer on stdout.

The child's memory is free afterwards, and a crash, as by an impossible allocation of MLX, ends only
the child.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from edge.errors import EdgeError
from edge.linux_cpu import child_environment


def module_command(module: str, *arguments: str) -> tuple[str, ...]:
    """Command line that runs a module.

    -P keeps the current directory off the path: a model's folder may contain a `json.py`.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def run_child(
    module: str, question: Any, timeout_s: float, what: str, environment: Mapping[str, str] = {}
) -> Any:
    """The answer of a module that ends in `child_main`.

    Raises an EdgeError that begins with `what` if the child fails or takes too long.
    """
    command, asked = module_command(module), json.dumps(question)
    env = child_environment() | dict(environment)
    try:
        run = subprocess.run(
            command, input=asked, capture_output=True, text=True, timeout=timeout_s, env=env
        )
    except subprocess.TimeoutExpired:
        raise EdgeError(f"{what} took more than {timeout_s:g} s.") from None
    if run.returncode != 0:
        last_line = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        by_signal = run.returncode < 0 and signal.Signals(-run.returncode).name
        reason = f"its process was ended by {by_signal}" if by_signal else last_line
        raise EdgeError(f"{what} could not be computed ({reason}).")
    return json.loads(run.stdout)


def child_main(compute: Callable[[Any], Any]) -> int:
    """Computes the answer and returns the exit code; an EdgeError becomes a line on stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the answer
    try:
        print(json.dumps(compute(json.load(sys.stdin))), file=answers, flush=True)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0

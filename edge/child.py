"""Work in a process of its own: a JSON question on stdin, a JSON answer on stdout.

Its memory is free afterwards; what ends it, as an impossible allocation of MLX, ends it alone.
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
    """Command line of one of our modules, without the current directory on its path (-P).

    There may be a `json.py` in it, as in a folder that came with a model.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def run_child(
    module: str,
    question: Any,
    timeout_s: float,
    what: str,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """The answer of a module that ends in `child_main`; `what` names it in errors.

    Raises:
        EdgeError: it failed or took too long, with the reason.
    """
    command, asked = module_command(module), json.dumps(question)
    env = child_environment() | dict(environment or {})
    try:
        run = subprocess.run(
            command, input=asked, capture_output=True, text=True, timeout=timeout_s, env=env
        )
    except subprocess.TimeoutExpired:
        raise EdgeError(f"{what} took more than {timeout_s:g} s.") from None
    if run.returncode != 0:
        last_words = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        by_signal = run.returncode < 0 and signal.Signals(-run.returncode).name
        why = f"its process was ended by {by_signal}" if by_signal else last_words
        raise EdgeError(f"{what} could not be computed ({why}).")
    return json.loads(run.stdout)


def child_main(compute: Callable[[Any], Any]) -> int:
    """The exit code of such a process; an EdgeError becomes a sentence on stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is not the answer
    try:
        print(json.dumps(compute(json.load(sys.stdin))), file=answers, flush=True)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0

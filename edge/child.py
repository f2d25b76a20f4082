"""Work in a process of its own: a JSON question in, a JSON answer out.

For what takes memory that must be gone before anything else is measured, or what may take its
process with it when it fails, as MLX does of an impossible allocation.
"""

from __future__ import annotations

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
    """How to start a module of ours: without the current directory on the module path (-P).

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
    """Run a module that ends in `child_main`, and give what it answers.

    Args:
        module: as `python -m` takes it.
        question: plain JSON data.
        timeout_s: after this long it is given up.
        what: is computed, for the sentence if it fails; a plural.
        environment: variables beside our own.

    Raises:
        EdgeError: it failed or took too long, with the reason.
    """
    asked = json.dumps(question)
    try:
        run = subprocess.run(
            module_command(module),
            input=asked,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**child_environment(), **(environment or {})},
        )
    except subprocess.TimeoutExpired:
        raise EdgeError(f"{what} took more than {timeout_s:g} s.") from None
    if run.returncode != 0:
        raise EdgeError(f"{what} could not be computed ({_why(run)}).")
    return json.loads(run.stdout)


def _why(run: subprocess.CompletedProcess[str]) -> str:
    """Its last words, which after a signal are not about that."""
    if run.returncode < 0:
        return f"its process was ended by {signal.Signals(-run.returncode).name}"
    return (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]


def child_main(work: Callable[[Any], Any]) -> int:
    """The whole of such a process: the exit code; an EdgeError is a sentence on stderr.

    Args:
        work: plain JSON data -> plain JSON data.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is not the answer
    question = json.load(sys.stdin)
    try:
        print(json.dumps(work(question)), file=answers, flush=True)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0

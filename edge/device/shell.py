"""The one place where this package starts a program of the system."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

# Answers of `pmset`, `sysctl`, `notifyutil` and `ioreg` take some 10 ms; this is for a sick system.
TIMEOUT_S = 5.0

Run = Callable[[Sequence[str]], str]


def output_of(command: Sequence[str]) -> str:
    """Standard output of a small system command.

    What it says counts, not its exit code: `sysctl` asked for five names of which one does
    not exist prints four and fails.

    Returns:
        The text without white space around it, empty where the program is missing or hangs.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()

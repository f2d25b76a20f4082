"""Small programs and files of the system: most exist on some machines only."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

# Answers of `pmset`, `sysctl`, `notifyutil` and `ioreg` take some 10 ms; this is for a sick system.
TIMEOUT_S = 5.0

Run = Callable[[Sequence[str]], str]


def output_of(command: Sequence[str]) -> str:
    """Output of a small program, stripped; empty where it is missing or hangs.

    The exit code is ignored: `sysctl` fails if one of five names does not exist, and prints four.
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


def text_of(path: Path) -> str | None:
    """Content of a small file, stripped; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number_in(path: Path) -> int | None:
    """The whole number in a file; None where there is none."""
    try:
        return int(text_of(path) or "")
    except ValueError:
        return None

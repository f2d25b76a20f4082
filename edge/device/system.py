"""Small programs and files of the system, most of which exist only on some machines."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

# `pmset`, `sysctl`, `notifyutil` and `ioreg` take about 10 ms.
TIMEOUT_S = 5.0
# Not the user's PATH: it may contain ".", where any folder could hold its own `sysctl`.
PATH = "/usr/bin:/bin:/usr/sbin:/sbin"


def output_of(command: Sequence[str]) -> str:
    """Output of a small program of the system, stripped; empty where it is missing or hangs.

    The exit code is ignored: `sysctl` fails if one of its names is unknown, and prints the others.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            env={**os.environ, "PATH": PATH},
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
    try:
        return int(text_of(path) or "")
    except ValueError:
        return None

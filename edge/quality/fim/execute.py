"""Run a generated program, on request only: in a process of its own that is locked in first.

No socket can be opened and no process started in it (see `edge.quality.fim.jail`); its time,
its memory and the size of its files are bounded, its environment is empty, its output goes
nowhere, and its folder is deleted afterwards. Writing elsewhere is prevented where the kernel
has Landlock, and on macOS by the same profile of sandbox-exec; it is not promised. It can read
what its user can read, and has nowhere to send it.

The verdict is the process's own, so a program that means to cheat can: this keeps a machine
from harm, not a benchmark from fraud.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge.errors import EdgeError
from edge.quality.fim import jail

Outcome = Literal["passed", "failed", "timed out", "refused"]
VERDICT_BYTES = 4096
SANDBOX_EXEC = "sandbox-exec"
# Not tried on a Mac by us: the jail tries the network and a fork before it runs anything.
MACOS_PROFILE = """(version 1)
(allow default)
(deny network*)
(deny process-fork)
(deny signal (target others))
(deny file-write* (require-not (require-any (subpath "{folder}") (literal "/dev/null"))))
"""


@dataclass(frozen=True)
class Limits:
    """What one program may take."""

    wall_s: float = 10.0
    cpu_s: float = 10.0
    memory_bytes: int = 1 << 30


@dataclass(frozen=True)
class Verdict:
    """What became of a program, and why if it did not pass."""

    outcome: Outcome
    reason: str = ""


def check_sandbox() -> None:
    """Find out whether programs can be locked in here, before any is generated.

    Raises:
        EdgeError: they cannot.
    """
    verdict = execute("pass")
    if verdict.outcome != "passed":
        raise EdgeError(
            f"generated code cannot be run safely here ({verdict.reason or verdict.outcome}); "
            f"leave out --execute."
        )


def execute(program: str, limits: Limits | None = None) -> Verdict:
    """Run Python source; passed means that its end was reached.

    Args:
        program: the source.
        limits: None for the default ones.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="edge-execute-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        # Half a character, which a model's bytes can make, is an error of the program's.
        (folder / "program.py").write_bytes(program.encode("utf-8", "surrogatepass"))
        command = _command(folder, limits)
        if command is None:
            return Verdict("refused", f"{SANDBOX_EXEC} is missing")
        with _started(command, folder) as process:
            try:
                process.wait(timeout=limits.wall_s)
            except subprocess.TimeoutExpired:
                return Verdict("timed out")
            assert process.stdout is not None
            said = os.read(process.stdout.fileno(), VERDICT_BYTES).decode("ascii", "replace")
            return _verdict(said, process.returncode)


def _command(folder: Path, limits: Limits) -> list[str] | None:
    script = [sys.executable, "-I", "-B", jail.__file__, str(folder)]
    numbers = [str(limits.cpu_s), str(limits.memory_bytes)]
    if platform.system() != "Darwin":
        return [*script, *numbers]
    found = shutil.which(SANDBOX_EXEC)
    profile = MACOS_PROFILE.format(folder=folder)
    return None if found is None else [found, "-p", profile, *script, *numbers]


@contextlib.contextmanager
def _started(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which does not outlive the block."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={"HOME": str(folder), "TMPDIR": str(folder), "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.wait()


def _verdict(said: str, code: int) -> Verdict:
    """From the lines that the jail wrote: WORD 'reason'."""
    words = [line.partition(" ")[::2] for line in said.splitlines()]
    found = dict(words)
    if jail.READY not in found:
        reason = found.get(jail.REFUSED, "'the sandbox did not start'")
        return Verdict("refused", reason[1:-1])
    if jail.PASSED in found:
        return Verdict("passed")
    if code == -signal.SIGXCPU:
        return Verdict("timed out")
    if code < 0:
        return Verdict("failed", f"ended by signal {-code}")
    return Verdict("failed", found.get(jail.FAILED, "'it ended itself'")[1:-1])

"""Another environment's interpreter, which runs the same rows as the second arm (--vs)."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from edge.bench.plan import Target
from edge.bench.runner import WORKER, environment_of
from edge.bench.worker import ABOUT, PROTOCOL, About, Job
from edge.device.software import COMPARED, software_versions
from edge.errors import EdgeError, printable

TIMEOUT_S = 120.0
MOST_NAMED = 2


@dataclass(frozen=True)
class Environment:
    """An interpreter whose edge can run our rows; `name` says in what it differs."""

    python: str
    name: str
    software: Mapping[str, str]

    def beside(self, planned: Sequence[tuple[Job, Target]]) -> list[tuple[Job, Target]]:
        """Every job of this environment, and behind it the same one there."""
        return [
            (each, target)
            for job, target in planned
            for each in (job, replace(job, python=self.python, arm=self.name))
        ]


def open_environment(python: str) -> Environment:
    """Asks the interpreter's edge what it is; an EdgeError where it cannot run our rows."""
    path = shutil.which(python)
    if path is None:
        raise EdgeError(
            f"--vs {python} is not a program; give the python of an environment with edge in it, "
            f"such as ../other/.venv/bin/python."
        )
    about = _about(path)
    if about.protocol != PROTOCOL:
        raise EdgeError(
            f"--vs {python} has an edge whose worker speaks protocol {about.protocol}, this one "
            f"{PROTOCOL}; install the same or a nearer version there."
        )
    return Environment(path, _name(about.software), about.software)


def _about(path: str) -> About:
    command = (path, *WORKER[1:], ABOUT)
    try:
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            env=environment_of(path),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EdgeError(f"--vs {path} does not run as a Python interpreter ({error}).") from None
    try:
        return msgspec.json.decode(answer.stdout, type=About)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    if answer.stdout.lstrip().startswith(b"{"):  # an older worker takes it for a broken job
        raise EdgeError(f"--vs {path} has an edge that is too old for --vs; install a newer one.")
    lines = answer.stderr.decode("utf-8", "replace").strip().splitlines()
    reason = printable(lines[-1][:200]) if lines else f"exit code {answer.returncode}"
    raise EdgeError(f"--vs {path} does not run edge ({reason}); install edge in that environment.")


def _name(theirs: Mapping[str, str]) -> str:
    """The packages that differ, such as "mlx 0.31.0"; B if none does."""
    ours = software_versions()
    parts = [
        f"{package.removesuffix('-revision')} {theirs.get(package, 'without')[:20]}"
        for package in COMPARED
        if theirs.get(package) != ours.get(package)
    ]
    return ", ".join(parts[:MOST_NAMED]) or "B"

"""The command that installs a package into the environment that runs this."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def install_command(package: str) -> str:
    """What to type: pip where the environment has it, else uv, which finds a `.venv` by itself."""
    if find_spec("pip") is not None:
        return f"{Path(sys.executable).name} -m pip install {package}"
    here = Path.cwd() / ".venv"
    other = "" if Path(sys.prefix) == here else f" --python {sys.prefix}"
    return f"uv pip install{other} {package}"

"""The command that installs a package into the environment that runs this."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def install_command(package: str) -> str:
    """What to type: pip where the environment has it, else uv, which finds an environment itself.

    Without folders: advice stands in profiles, which are shared.
    """
    pip = f"{Path(sys.executable).name} -m pip" if find_spec("pip") is not None else "uv pip"
    return f"{pip} install {package}"

"""The command that installs a package into the environment that runs this."""

import sys
from importlib.util import find_spec
from pathlib import Path


def install_command(package: str) -> str:
    """pip where the environment has it, else uv; no folders, since it stands in shared profiles."""
    pip = f"{Path(sys.executable).name} -m pip" if find_spec("pip") is not None else "uv pip"
    return f"{pip} install {package}"

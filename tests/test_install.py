"""What a user types or `make setup` runs, on machines that differ from this one."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edge import install
from edge.install import install_command
from tests.support.profiles import ROOT

# Writes down what it is asked; `python find` finds what FOUND says.
UV = """#!/bin/sh
echo "$@" >> "$0.log"
[ "$1 $2" = "python find" ] || exit 0
[ -n "$FOUND" ] && echo "$FOUND"
"""


def program(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_setup(folder, **environment):
    """`make setup` into a folder, uv and the given programs replaced."""
    uv = program(folder, "uv", UV)
    done = subprocess.run(
        ["make", "-C", ROOT, "setup", f"VENV={folder / 'venv'}", f"UV={uv}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment},
    )
    log = Path(f"{uv}.log")
    return done, log.read_text() if log.exists() else ""


@pytest.mark.parametrize(
    ("found", "asked"), [("/usr/bin/python3.12", "/usr/bin/python3.12"), ("", "3.13")]
)
def test_setup_takes_a_python_that_is_tested(found, asked, tmp_path):
    (tmp_path / "venv").mkdir()
    done, log = make_setup(tmp_path, FOUND=found)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert done.returncode == 0, done.stderr
    assert f"python find --no-python-downloads {project['requires-python']}" in log
    assert f"venv --quiet --python {asked} " in log


def test_on_a_mac_without_its_tools_setup_says_what_to_type(tmp_path):
    """c++ is there: a stub that opens a dialogue."""
    program(tmp_path, "uname", "#!/bin/sh\necho Darwin\n")
    program(tmp_path, "xcode-select", "#!/bin/sh\nexit 2\n")
    done, log = make_setup(tmp_path)
    assert done.returncode != 0 and log == ""
    assert "run 'xcode-select --install' (macOS)" in done.stderr


def test_packages_are_installed_by_pip_where_it_is_there_else_by_uv(monkeypatch):
    monkeypatch.setattr(install, "find_spec", lambda name: object())
    assert install_command("x") == f"{Path(sys.executable).name} -m pip install x"
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    assert install_command("x") == "uv pip install x"

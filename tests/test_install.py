"""`make setup` on other machines, and the command that installs a package."""

import os
import subprocess
import tomllib

import pytest

from tests.support.profiles import ROOT

# Logs its arguments; `python find` prints FOUND.
UV = """echo "$@" >> "$0.log"
[ "$1 $2" != "python find" ] || { [ -n "$FOUND" ] && echo "$FOUND"; }"""


@pytest.mark.parametrize(
    ("found", "used"), [("/usr/bin/python3.12", "/usr/bin/python3.12"), ("", "3.13")]
)
def test_setup_uses_a_supported_python(found, used, tmp_path):
    (tmp_path / "venv").mkdir()
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\n{UV}\n")
    uv.chmod(0o755)
    subprocess.run(
        ["make", "-C", ROOT, "setup", f"VENV={tmp_path / 'venv'}", f"UV={uv}"],
        check=True,
        env={**os.environ, "FOUND": found},
    )
    log = (tmp_path / "uv.log").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"python find --no-python-downloads {project['requires-python']}" in log
    assert f"venv --quiet --python {used} " in log

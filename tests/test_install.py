"""`make setup` on other machines, and the command that installs a package."""

import os
import subprocess
import sys
import tomllib

import pytest

from edge import errors
from edge.device import nvidia
from edge.errors import EdgeError, install_command
from tests.support.profiles import ROOT
from tests.support.terminal import Terminal

# Logs its arguments; `python find` prints FOUND. COMPILER runs if llama.cpp is not in the cache.
UV = """echo "$@" >> "$0.log"
[ "$1 $2" != "python find" ] || { [ -n "$FOUND" ] && echo "$FOUND"; exit; }
[ -n "$COMPILER" ] || exit 0
case "$*" in
    *--no-build-isolation*) exit 1;;
    *--verbose*) echo "DEBUG [12/140] cc" >&2; eval "$COMPILER";;
esac"""


def setup_words(folder):
    return ["make", "-B", "-C", ROOT, "setup", f"VENV={folder / 'venv'}", f"UV={folder / 'uv'}"]


@pytest.fixture
def setup(tmp_path):
    """setup(found, compiler): the ended process of make, and the calls of uv."""
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\n{UV}\n")
    uv.chmod(0o755)
    (tmp_path / "venv").mkdir()

    def run(found="", compiler=""):
        done = subprocess.run(
            setup_words(tmp_path),
            env={**os.environ, "FOUND": found, "COMPILER": compiler},
            capture_output=True,
            text=True,
        )
        return done, (tmp_path / "uv.log").read_text().splitlines()

    return run


@pytest.mark.parametrize(
    ("found", "used"), [("/usr/bin/python3.12", "/usr/bin/python3.12"), ("", "3.13")]
)
def test_setup_uses_a_supported_python(setup, found, used):
    done, calls = setup(found)
    assert done.returncode == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"python find --no-python-downloads {project['requires-python']}" in calls
    assert f"venv --quiet --python {used} " in "\n".join(calls)


def test_setup_compiles_only_what_uvs_cache_does_not_hold(setup):
    done, calls = setup()
    assert all("--offline" in call for call in calls if call.startswith("pip install"))
    assert "compiled" not in done.stdout
    done, calls = setup(compiler="true")
    assert done.returncode == 0 and "llama.cpp is compiled: about" in done.stdout
    assert "\r" not in done.stdout + done.stderr  # no moving line: this is not a terminal
    done, _ = setup(compiler="echo error: no compiler >&2; false")
    assert done.returncode == 2
    assert "error: no compiler" in done.stderr and "DEBUG" not in done.stderr


def test_setup_shows_a_compilers_progress_on_a_terminal(setup, tmp_path):
    fifo = tmp_path / "uv.fifo"
    os.mkfifo(fifo)
    terminal = Terminal(
        setup_words(tmp_path), tmp_path, {**os.environ, "COMPILER": 'read -r _ < "$0.fifo"'}
    )
    try:
        terminal.wait_for("[12/140]")
        assert terminal.line.startswith("  compiling llama.cpp 0:0")
        fifo.write_text("go on\n")
        assert terminal.leave("") == 0
        assert any(line.startswith("  compiling llama.cpp: 0:0") for line in terminal.shown)
        assert not any("[12/140]" in line for line in terminal.shown)
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("mark", "pip", "uv", "command"),
    [
        ("pipx_metadata.json", True, None, "pipx runpip stable-edge install x"),
        ("uv-receipt.toml", False, "uv", 'uv pip install --python "$(uv tool dir)/stable-edge" x'),
        (None, True, None, "python3 -m pip install x"),
        (None, False, "uv", "uv pip install x"),
        (None, False, None, ".tools/bin/uv pip install x"),
    ],
)
def test_advice_to_install_fits_the_environment(monkeypatch, tmp_path, mark, pip, uv, command):
    if mark:
        (tmp_path / mark).touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/somewhere/bin/python3")
    monkeypatch.setattr(errors, "find_spec", lambda name: "pip" if pip else None)
    monkeypatch.setattr(errors, "which", lambda name: uv)
    assert install_command("x") == command


@pytest.mark.parametrize(
    ("driver", "advice"), [(True, "nvidia-ml-py"), (False, "no NVIDIA driver")]
)
def test_a_package_is_advised_only_where_its_hardware_is(monkeypatch, driver, advice):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(nvidia, "_has_driver", lambda: driver)
    with pytest.raises(EdgeError, match=advice):
        nvidia.load_nvml()

"""What reports read at run time travels in the wheel: all of edge/ that git does not ignore."""

import shutil
import subprocess
import tomllib

import pytest

from tests.support.profiles import ROOT


def test_the_wheel_is_the_whole_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    build = settings["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"] == {"packages": ["edge"]}
    assert not build.keys() - {"targets"}  # nothing that leaves files out


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="this is no git checkout"
)
def test_git_ignores_none_of_it():
    """The build leaves out what git ignores."""
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard", "edge"]
    assert subprocess.check_output(command, cwd=ROOT, text=True) == ""

import shutil
import subprocess
from types import SimpleNamespace

import pytest

import edge
from edge.device import software
from edge.device.software import checkout_revision, software_versions


def commit(folder):
    """Make the folder a repository with one commit; returns its id."""
    identity = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        subprocess.run(["git", *identity, *words], cwd=folder, check=True)
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=folder, text=True).strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not on the PATH")
def test_the_revision_of_a_checkout(tmp_path):
    package = tmp_path / "checkout" / "edge"
    package.mkdir(parents=True)
    (package / "code.py").write_text("a = 1\n")
    commit(tmp_path)
    assert checkout_revision(package) is None  # installed inside another repository
    subprocess.run(["git", "init", "-q"], cwd=package.parent, check=True)
    assert checkout_revision(package) is None  # no commit
    revision = commit(package.parent)
    (package.parent / "notes.txt").write_text("not code\n")
    assert checkout_revision(package) == revision
    (package / "new.py").write_text("b = 2\n")
    assert checkout_revision(package) == f"{revision}-dirty"


def test_versions_name_no_folder_and_have_the_tag_of_mlx_metal(monkeypatch):
    """Of its two wheels only one has the matrix kernels of M5's GPU."""
    wheel = "Wheel-Version: 1.0\nTag: py3-none-macosx_26_0_arm64\n"
    distribution = SimpleNamespace(version="0.32.4", read_text={"WHEEL": wheel}.get)
    monkeypatch.setattr(software, "checkout_revision", lambda _: "0" * 40 + "-dirty")
    versions = software_versions()
    assert versions["edge"] == edge.__version__
    assert versions["edge-revision"] == "0" * 40 + "-dirty"
    assert not any("/" in value for value in versions.values())
    assert "mlx-metal-wheel" not in versions
    monkeypatch.setattr(software.metadata, "distribution", lambda name: distribution)
    assert software_versions()["mlx-metal-wheel"] == "macosx_26_0_arm64"

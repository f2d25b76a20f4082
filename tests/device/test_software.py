"""Which commit a profile says it was measured with."""

import shutil
import subprocess

import pytest

import edge
from edge.device import software
from edge.device.software import checkout_revision, software_versions

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not on the PATH")


@pytest.fixture
def package(tmp_path):
    """A package that lies in a directory as edge does in its checkout."""
    folder = tmp_path / "somewhere" / "edge"
    folder.mkdir(parents=True)
    (folder / "code.py").write_text("a = 1\n")
    return folder


def committed(folder):
    """Make it a repository with one commit; its name."""
    identity = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        subprocess.run(["git", *identity, *words], cwd=folder, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True)
    return done.stdout.decode().strip()


@needs_git
def test_a_checkout_has_its_commit_and_whether_it_was_changed(package):
    commit = committed(package.parent)
    assert checkout_revision(package) == commit
    (package.parent / "notes.txt").write_text("no code\n")
    assert checkout_revision(package) == commit
    (package / "new.py").write_text("b = 2\n")
    assert checkout_revision(package) == f"{commit}-dirty"

    assert checkout_revision(package, lambda command: "") is None


@needs_git
def test_what_is_installed_inside_of_another_repository_has_none(package):
    committed(package.parent.parent)
    assert checkout_revision(package) is None


def test_the_versions_name_no_folder(monkeypatch):
    monkeypatch.setattr(software, "checkout_revision", lambda _: "0" * 40 + "-dirty")
    versions = software_versions()
    assert versions["edge"] == edge.__version__
    assert versions["edge-revision"] == "0" * 40 + "-dirty"
    assert not any("/" in value for value in versions.values())


def test_the_tag_of_mlxs_metal_wheel_is_recorded(monkeypatch):
    """Of two wheels only one has the matrix kernels of M5's GPU."""

    class Wheel:
        version = "0.32.4"

        @staticmethod
        def read_text(name):
            assert name == "WHEEL"
            return "Wheel-Version: 1.0\nTag: py3-none-macosx_26_0_arm64\n"

    assert "mlx-metal-wheel" not in software_versions()
    monkeypatch.setattr(software.metadata, "distribution", lambda name: Wheel)
    assert software_versions()["mlx-metal-wheel"] == "macosx_26_0_arm64"


@pytest.mark.parametrize(("value", "allowed"), [(None, True), ("1", True), ("0", False)])
def test_whether_float32_products_may_be_rounded(value, allowed, monkeypatch):
    monkeypatch.delenv("MLX_ENABLE_TF32")
    if value is not None:
        monkeypatch.setenv("MLX_ENABLE_TF32", value)
    assert software.tf32_allowed() is allowed

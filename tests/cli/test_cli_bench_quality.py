"""`edge bench --quality`: speed and what it costs, in one profile and one table."""

import shutil

import pytest

from edge.cli.main import main
from edge.profile.reading import read_profile
from tests.support.profiles import faults

QUICK = ["-p", "8", "-n", "8", "-r", "1", "--rounds", "1", "--min-window", "0", "--power", "none"]


@pytest.fixture
def out(demo_out, tmp_path):
    """A folder of one's own: scores are kept beside the artefacts."""
    (tmp_path / "out").mkdir()
    shutil.copy(demo_out / "gguf-q6_k.gguf", tmp_path / "out")
    shutil.copytree(demo_out / "mlx-fp16", tmp_path / "out" / "mlx-fp16")
    return tmp_path / "out"


def test_a_profile_has_both(out, tmp_path, capsys):
    save = tmp_path / "profiles"
    words = ["demo", "--rows", "gguf-q6_k", "--out", str(out), "--save", str(save), *QUICK]
    assert main(["bench", *words, "--quality", "512"]) == 0
    printed = capsys.readouterr().out
    assert "KL" in printed
    assert "add --quality" not in printed
    (file,) = save.glob("*.json")
    profile = read_profile(file)
    assert faults(profile) == []
    (row,) = profile["rows"]  # what it is compared with is no row
    assert row["quality"]["reference"] == "mlx-fp16"
    assert 0.0005 < row["quality"]["kl_mean"] < 0.05
    assert 0.8 < row["quality"]["top1_agreement"] < 1
    assert row["quality"]["tokens"] == 511
    assert list((out / "eval").glob("gguf-q6_k*.scores"))


def test_random_weights_are_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["synthetic:stable-code-3b", "--layers", "1", "--rows", "gguf-f16", *QUICK]
    assert main(["bench", *words, "--quality"]) == 1
    assert "random weights" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

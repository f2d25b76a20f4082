"""The model that a command names: a folder of models, too large, resident while it runs."""

import shutil

import numpy as np
import pytest
from gguf import GGUFReader

from edge.cli.main import main
from edge.cli.model_path import open_for
from edge.device.memory import MemoryRoom
from edge.formats.files import DEMO_PATH
from edge.model import load as loading
from edge.model import memory as model_memory
from tests.support.talk import resident_bytes
from tests.support.tiny import PLAIN, edit_tensors, write_checkpoint

COMMANDS = (("complete", "--prefix", "def f("), ("chat", "-p", "hello", "--quiet"))
each_command = pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])


def test_folder_of_artefacts_is_refused_with_their_names(demo_out, capsys):
    assert main(["complete", "--prefix", "x", "--model", str(demo_out)]) == 1
    assert f"name one of them: {demo_out / 'mlx-fp16'}, " in capsys.readouterr().err


@pytest.fixture
def room(monkeypatch):
    """room(now, most): sets the memory that is available now and at most."""
    monkeypatch.setattr("sys.stdin", None)

    def has(now_bytes, most_bytes):
        found = MemoryRoom(now_bytes, most_bytes, "memory")
        monkeypatch.setattr(model_memory, "available_bytes", lambda: found)

    return has


@each_command
def test_model_larger_than_memory_is_refused(words, room, monkeypatch, capsys):
    room(10**6, 2 * 10**6)
    monkeypatch.setattr(loading, "_load", lambda *_: pytest.fail("it was loaded"))
    assert main(list(words)) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "needs" in sentence and "1 MB of memory are available" in sentence


@each_command
def test_model_larger_than_free_memory_runs_resident_with_a_warning(
    words, room, monkeypatch, capsys
):
    room(10**6, 10**12)
    resident = resident_bytes(monkeypatch)
    assert main([*words, "-n", "1"]) == 0
    assert f"edge {words[0]}: warning: " in capsys.readouterr().err
    assert resident == [open_for(words[0], DEMO_PATH).running_bytes, 0]


def test_an_artefact_that_is_made_again_is_told(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(write_checkpoint(tmp_path / "tiny", PLAIN))
    assert command("convert", path, "--to", "mlx-int4")[0] == 0
    (tmp_path / "models" / "tiny" / "mlx-int4" / "config.json").write_text("{")
    words = ("--rows", "mlx-int4", "--reference", "none", "--tokens", "16", "--window", "16")
    err = command("eval", path, *words)[2]
    assert "edge eval: warning: models/tiny/mlx-int4 is damaged; it is made again." in err


def damaged(demo_out, tmp_path, artefact):
    """A copy of the demo's artefact with a weight that is not finite."""
    path = tmp_path / artefact
    if path.suffix == ".gguf":
        shutil.copy(demo_out / artefact, path)
        norm = next(t for t in GGUFReader(path, "r+").tensors if t.name == "output_norm.weight")
        norm.data[0] = np.nan
    else:
        shutil.copytree(demo_out / artefact, path)
        up = "model.layers.0.mlp.up_proj.weight"
        edit_tensors(path, lambda tensors: tensors[up].put(5, np.inf))
    return path


@pytest.mark.parametrize("artefact", ["mlx-fp16", "gguf-f16.gguf"])
def test_weights_that_are_not_finite_give_no_empty_answer(artefact, command, demo_out, tmp_path):
    path = damaged(demo_out, tmp_path, artefact)
    said = "the model computes NaN or infinity instead of logits, so its weights are damaged"
    assert said in command.refused("complete", "--model", path, "--prefix", "import ")
    assert said in command.refused("chat", path, "-p", "hello", "-q")
    if path.suffix == ".gguf":
        words = ("eval", path, "--tokens", "512", "--out", tmp_path)
        (row,) = command.json(*words, code=1)["rows"]
        assert "not finite" in row["reasons"][0]

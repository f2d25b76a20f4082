import json

import pytest
from safetensors.numpy import load_file, save_file

from edge.convert.checkpoint import open_checkpoint
from edge.errors import EdgeError
from tests.support.tiny import CONFIGS, PLAIN, write_checkpoint


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", PLAIN)


def test_names_of_checkpoints(tiny):
    demo = open_checkpoint("demo")
    assert demo.source.name == "demo"
    assert 4e6 < demo.parameters < 6e6
    assert open_checkpoint(str(tiny)).source.origin == "tiny"  # not its path


def test_qkv_bias_is_decided_by_the_tensors(tmp_path):
    path = write_checkpoint(tmp_path / "m", CONFIGS["qkv-bias"])
    raw = json.loads((path / "config.json").read_text())
    del raw["use_qkv_bias"]
    (path / "config.json").write_text(json.dumps(raw))
    assert open_checkpoint(str(path)).config.use_qkv_bias


def test_the_fingerprint_sees_one_changed_weight_file(tmp_path):
    paths = [
        write_checkpoint(tmp_path / name, PLAIN, seed)
        for name, seed in zip("abc", (0, 0, 1), strict=True)
    ]
    first, same, other = (open_checkpoint(str(path)) for path in paths)
    assert first.fingerprint == same.fingerprint != other.fingerprint
    # A shard smaller than one sample.
    tensors = load_file(paths[0] / "model.safetensors")
    small = {"model.norm.bias": tensors.pop("model.norm.bias")}
    save_file(small, paths[0] / "a.safetensors")
    save_file(tensors, paths[0] / "model.safetensors")
    assert open_checkpoint(str(paths[0])).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    "name", ["nothing-here", "../elsewhere/x", "", "~no-such-user/model/x", "x" * 300]
)
def test_names_that_are_no_checkpoint(name):
    with pytest.raises(EdgeError, match="neither 'demo', nor a directory"):
        open_checkpoint(name)


@pytest.mark.parametrize("damage", ["missing", "directory", "not JSON"])
def test_a_checkpoint_needs_its_tokenizer(tiny, damage):
    tokenizer = tiny / "tokenizer.json"
    tokenizer.unlink()
    if damage == "directory":
        tokenizer.mkdir()
    elif damage == "not JSON":
        tokenizer.write_text("{")
    with pytest.raises(EdgeError, match=r"tokenizer\.json"):
        open_checkpoint(str(tiny))


def test_missing_files_are_named(tiny):
    with pytest.raises(EdgeError, match="is a file"):
        open_checkpoint(str(tiny / "config.json"))
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")
    with pytest.raises(EdgeError, match=r"pytorch_model\.bin, a pickle"):
        open_checkpoint(str(tiny))
    (tiny / "config.json").unlink()
    with pytest.raises(EdgeError, match=r"config\.json is missing"):
        open_checkpoint(str(tiny))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"a": "gone.safetensors"}}, r"gone\.safetensors is missing"),
        ({"weight_map": {"a": "../tiny/model.safetensors"}}, "outside its directory"),
        ({"weight_map": {"a": "/etc/passwd"}}, "outside its directory"),
        ({"weight_map": [1]}, "no weight_map"),
        ({}, "no weight_map"),
    ],
)
def test_an_index_that_lies(tiny, index, words):
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EdgeError, match=words):
        open_checkpoint(str(tiny))

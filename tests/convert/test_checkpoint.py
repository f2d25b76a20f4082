import json

import pytest
from safetensors.numpy import load_file, save_file

from edge.convert.checkpoint import open_checkpoint
from edge.convert.sources import find as source
from edge.errors import EdgeError
from edge.model.tensors import parameter_count
from tests.support.tiny import CONFIGS, PLAIN, write_checkpoint


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", PLAIN)


def test_the_demo_is_a_whole_checkpoint():
    checkpoint = open_checkpoint("demo")
    assert checkpoint.source.name == "demo"
    assert 4e6 < parameter_count(checkpoint.config) < 6e6


def test_a_directory_is_called_by_its_name_not_its_path(tiny):
    assert open_checkpoint(str(tiny)).source.origin == "tiny"


def test_qkv_bias_is_decided_by_the_tensors(tmp_path):
    path = write_checkpoint(tmp_path / "m", CONFIGS["qkv-bias"])
    raw = json.loads((path / "config.json").read_text())
    del raw["use_qkv_bias"]
    (path / "config.json").write_text(json.dumps(raw))
    assert open_checkpoint(str(path)).config.use_qkv_bias


def test_the_fingerprint_sees_one_changed_weight_file(tmp_path):
    first, same, other = (
        open_checkpoint(str(write_checkpoint(tmp_path / name, PLAIN, seed)))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing-here", "neither 'demo', nor a directory"),
        ("../elsewhere/x", "neither 'demo'"),
        ("", "neither 'demo'"),
        ("~no-such-user/model/x", "neither 'demo'"),
        ("x" * 300, "neither 'demo'"),
    ],
)
def test_names_that_are_no_checkpoint(name, words):
    with pytest.raises(EdgeError, match=words):
        open_checkpoint(name)


def test_a_file_is_no_checkpoint(tiny):
    with pytest.raises(EdgeError, match="is a file"):
        open_checkpoint(str(tiny / "config.json"))


def test_tiny_shards_have_a_fingerprint(tmp_path):
    """A shard smaller than one sample."""
    path = write_checkpoint(tmp_path / "m", PLAIN)
    tensors = load_file(path / "model.safetensors")
    small = {"model.norm.bias": tensors.pop("model.norm.bias")}
    save_file(small, path / "a.safetensors")
    save_file(tensors, path / "model.safetensors")
    assert open_checkpoint(str(path)).fingerprint


@pytest.mark.parametrize("damage", ["missing", "directory", "not JSON"])
def test_a_checkpoint_without_its_tokenizer_is_not_whole(tiny, damage):
    tokenizer = tiny / "tokenizer.json"
    tokenizer.unlink()
    if damage == "directory":
        tokenizer.mkdir()
    elif damage == "not JSON":
        tokenizer.write_text("{")
    with pytest.raises(EdgeError, match=r"tokenizer\.json"):
        open_checkpoint(str(tiny))


def test_missing_parts_are_named(tiny):
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


def test_a_hub_that_cannot_be_reached_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EdgeError, match="cannot be fetched from the hub") as error:
        source.find_source("stabilityai/stable-code-3b")
    assert "\n" not in str(error.value)

import pytest
from safetensors.numpy import load_file, save_file

from edge.convert.checkpoint import open_checkpoint
from edge.errors import EdgeError
from tests.support.tiny import CONFIGS, PLAIN, edit, write_checkpoint


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
    edit(path, "config.json", lambda raw: raw.pop("use_qkv_bias"))
    assert open_checkpoint(str(path)).config.use_qkv_bias


def test_the_fingerprint_sees_one_changed_weight_file(tmp_path):
    paths = [write_checkpoint(tmp_path / name, PLAIN, int(name[-1])) for name in ("0", "a0", "1")]
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
    with pytest.raises(EdgeError, match="there is no checkpoint"):
        open_checkpoint(name)


def test_missing_files_are_named(tiny):
    with pytest.raises(EdgeError, match="is not a GGUF file or directory"):
        open_checkpoint(str(tiny / "config.json"))
    for name in ("tokenizer.json", "config.json"):
        (tiny / name).unlink()
        with pytest.raises(EdgeError, match=rf"{name} is missing"):
            open_checkpoint(str(tiny))

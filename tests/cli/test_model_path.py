"""What a command says of a model that is none, or half of one."""

import shutil

import mlx.core as mx
import pytest

from edge.cli.main import main
from tests.support.tiny import PLAIN, write_checkpoint


def spoilt(folder, kind, demo_out):
    """A directory or file that is no model that runs here, and what is said of it."""
    path = folder / kind
    if kind == "plain":
        path.write_text("no model")
        return path, "is a file but no .gguf"
    if kind == "gptq":
        write_checkpoint(path, PLAIN)
        tensors = mx.load(str(path / "model.safetensors"))
        mx.eval(tensors)
        codes = {"model.layers.0.self_attn.q_proj.qweight": mx.zeros((8, 64), dtype=mx.int32)}
        mx.save_safetensors(str(path / "model.safetensors"), {**tensors, **codes})
        return path, "holds GPTQ weights"
    shutil.copytree(demo_out / "mlx-fp16", path)
    if kind == "foreign":
        (path / "config.json").write_text('{"model_type": "mistral"}')
        return path, "describes a 'mistral' model"
    if kind == "truncated":
        data = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(data[:5000])
        return path, "model.safetensors is cut off"
    (path / kind).unlink()
    return path, {"tokenizer.json": "no tokenizer.json", "config.json": "is missing"}[kind]


@pytest.mark.parametrize(
    "kind", ["plain", "gptq", "foreign", "truncated", "tokenizer.json", "config.json"]
)
def test_what_is_no_model_or_half_of_one(kind, tmp_path, demo_out, capsys):
    path, words = spoilt(tmp_path, kind, demo_out)
    assert main(["complete", "--prefix", "x", "--model", str(path)]) == 1
    out, errors = capsys.readouterr()
    assert (out, errors.count("\n")) == ("", 1)
    assert words in errors


def test_a_folder_of_artefacts_names_them(demo_out, capsys):
    assert main(["complete", "--prefix", "x", "--model", str(demo_out)]) == 1
    assert f"name one of them: {demo_out / 'mlx-fp16'}, " in capsys.readouterr().err

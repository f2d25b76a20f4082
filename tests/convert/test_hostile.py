"""Checkpoints made to harm: each kind is a clear sentence, and nothing is run or left behind.

Here: JSON, settings, links and pipes, pickles and code. Contents: test_hostile_contents.py.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge.convert.checkpoint import open_checkpoint
from edge.errors import EdgeError
from tests.support.foreign_gguf import write_tiny
from tests.support.gptq_packer import Settings, write_gptq
from tests.support.hostile import (
    MADE,
    UP,
    WEIGHTS,
    edit,
    edit_header,
    edit_tensors,
    limited,
    refused,
)
from tests.support.mutations import GPTQ, INDEX, SMALL
from tests.support.tiny import LLAMA, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", SMALL)


# --- JSON


JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", INDEX)
BAD_JSON = {
    "deep": (b'{"a": ' + b"[" * 100_000, "nested deeper than"),
    "deep and whole": (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "nested deeper than"),
    "many digits": (b'{"a": ' + b"1" * 5000 + b"}", "digits"),
    "a key twice": (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
    "NaN": (b'{"a": NaN}', "NaN is no JSON"),
    "infinity": (b'{"a": -Infinity}', "-Infinity is no JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "utf-8"),
    "UTF-32": ('{"a": 1}'.encode("utf-32-le"), "cannot be read as JSON"),
    "a BOM": (b'\xef\xbb\xbf{"a": 1}', "BOM"),
    "Latin-1": ('{"a": "ü"}'.encode("latin-1"), "utf-8"),
    "half a character": (b'{"a": "\\ud800"}', "surrogates not allowed"),
    "a list": (b"[]", "no JSON object"),
    "a null": (b"null", "no JSON object"),
    "nothing": (b"", "cannot be read as JSON"),
    "a pickle": (pickle.dumps({"a": 1}), "cannot be read as JSON"),
}


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_harms(tiny, file, kind):
    content, words = BAD_JSON[kind]
    (tiny / file).write_bytes(content)
    assert file in refused(tiny, words)


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "socket link", "loop"])
def test_what_is_no_file(tiny, file, kind):
    path = tiny / file
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"device": "/dev/zero", "socket link": "/dev/stdin", "loop": file}[kind])
    assert file in refused(tiny, r"no file|leads out|circle|cannot be read")


def test_a_file_without_an_end_is_given_up(tiny):
    with (tiny / "config.json").open("r+b") as file:
        file.truncate(100_000_001)  # a hole
    refused(tiny, "is larger than")


def test_what_a_file_says_reaches_no_terminal(tiny):
    """Escape sequences and line breaks are shown, and a flood is cut."""
    edit(tiny, "config.json", lambda raw: raw.update(hidden_act="\x1b[2J\nfine" + "x" * 10**6))
    assert r"\x1b[2J" in refused(tiny, "hidden_act")
    edit_header(tiny, lambda header: header.update({"\x1b[2J\n": header.pop(UP)}))
    edit(tiny, "config.json", lambda raw: raw.update(hidden_act="silu"))
    refused(tiny, UP)


# --- config.json


WHOLE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
COUNTS = (*WHOLE, "num_attention_heads", "num_key_value_heads", "max_position_embeddings")
REALS = ("rope_theta", "layer_norm_eps", "partial_rotary_factor")
SWITCHES = ("tie_word_embeddings", "qk_layernorm", "use_qkv_bias", "use_parallel_residual")
NO_COUNT = (0, -1, 10**12, 2**63, 10**4000, 64.0, 0.5, True, "64", [64], {"a": 1}, 1e400)


@pytest.mark.parametrize("value", NO_COUNT, ids=lambda value: str(value)[:9])
@pytest.mark.parametrize("key", COUNTS)
def test_counts_that_are_none(tiny, key, value):
    edit(tiny, "config.json", lambda raw: raw.update({key: value}))
    refused(tiny, rf"{key}|Infinity is no JSON")


@pytest.mark.parametrize("value", [0, -1.0, 1e-320, 10**4000, True, "1", [1.0], 1e400])
@pytest.mark.parametrize("key", REALS)
def test_numbers_that_are_none(tiny, key, value):
    edit(tiny, "config.json", lambda raw: raw.update({key: value}))
    refused(tiny, rf"{key}|Infinity is no JSON")


@pytest.mark.parametrize("value", ["false", "", 0, 1, [], {}])
@pytest.mark.parametrize("key", SWITCHES)
def test_switches_that_are_neither_on_nor_off(tiny, key, value):
    """ "false" would be true, and a tied head ignores the one that is there."""
    edit(tiny, "config.json", lambda raw: raw.update({key: value}))
    refused(tiny, f"{key} is .* not true or false")


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias", "tie_word_embeddings"])
def test_switches_of_a_llama(tmp_path, key):
    path = write_checkpoint(tmp_path / "llama", LLAMA)
    edit(path, "config.json", lambda raw: raw.update({key: "false"}))
    refused(path, f"{key} is 'false'", ["mlx-fp16"])


@pytest.mark.parametrize("value", [-1, 64, 10**12, 0.5, "0", True, [0, 64], [[0]], {}])
@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
def test_tokens_that_are_none(tiny, key, value):
    edit(tiny, "config.json", lambda raw: raw.update({key: value}))
    refused(tiny, f"{key} is .* not a token")


@pytest.mark.parametrize("quantised", [{}, {"quantization": {"bits": 4}}, "gptq"])
def test_a_billion_layers_are_not_listed(tmp_path, quantised):
    if quantised == "gptq":
        write_gptq(tmp_path / "m", GPTQ, Settings(group_size=32))
    else:
        write_checkpoint(tmp_path / "m", {**SMALL, **quantised})
    edit(tmp_path / "m", "config.json", lambda raw: raw.update(num_hidden_layers=2**30))
    refused(tmp_path / "m", f"asks for {2**30} layers .* files hold")


def test_a_billion_heads_are_not_listed(tiny):
    huge = {"hidden_size": 2**30, "num_attention_heads": 2**29, "num_key_value_heads": 2**29}
    edit(tiny, "config.json", lambda raw: raw.update(huge | {"qk_layernorm": True}))
    edit(tiny, "config.json", lambda raw: raw.update(partial_rotary_factor=1.0))
    refused(tiny, "so for at least")


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"factor": 4.0}},
        {"rope_scaling": {"rope_type": "yarn"}},
        {"rope_scaling": {"type": ["default"]}},
        {"rope_scaling": "linear"},
        {"rope_parameters": [1]},
    ],
)
def test_rope_scaling_is_never_passed_over(tiny, rope):
    edit(tiny, "config.json", lambda raw: raw.update(rope))
    refused(tiny, "rope")


def test_a_null_does_not_hide_the_rotary_base(tiny):
    nulls = {"rope_theta": 1e6, "rope_parameters": {"rope_theta": None}}
    edit(tiny, "config.json", lambda raw: raw.update(nulls))
    assert open_checkpoint(str(tiny)).config.rope_theta == 1e6


@pytest.mark.parametrize("method", ["bitsandbytes", "awq", "fp8", None, ["gptq"], 5])
def test_other_quantisations_are_refused(tiny, method):
    quantised = {"quant_method": method, "bits": 4, "group_size": 32}
    edit(tiny, "config.json", lambda raw: raw.update(quantization_config=quantised))
    refused(tiny, "quantised checkpoint that is neither GPTQ nor MLX")


# --- which files


@pytest.mark.parametrize(
    "name",
    [
        *("../tiny/model.safetensors", "/etc/passwd", "", ".", "..", "a/../model.safetensors"),
        *("a\0.safetensors", "a\n.safetensors", "./model.safetensors", "model.bin", ".."),
        "x" * 5000 + ".safetensors",
    ],
)
def test_an_index_that_points_elsewhere(tiny, name):
    (tiny / INDEX).write_text(json.dumps({"weight_map": {"a": WEIGHTS, "b": name}}))
    refused(tiny, "points outside|cannot be read")


@pytest.mark.parametrize(
    "weight_map", [None, [], "x", {"a": 1}, {"a": None}, {"a": [WEIGHTS]}, {"a": {}}]
)
def test_an_index_of_the_wrong_kind(tiny, weight_map):
    (tiny / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(tiny, "has no weight_map")


def test_an_index_of_very_many_files(tiny):
    names = {f"t{i}": f"{i:06}.safetensors" for i in range(50_000)}
    (tiny / INDEX).write_text(json.dumps({"weight_map": names}))
    refused(tiny, r"000000\.safetensors is missing")


@pytest.mark.parametrize("base", ["plain", "mlx", "gptq"])
def test_a_tensor_in_two_files(tmp_path, base):
    path = tmp_path / "m"
    if base == "gptq":
        write_gptq(path, GPTQ, Settings(group_size=32))
    else:
        write_checkpoint(path, SMALL | ({"quantization": {}} if base == "mlx" else {}))
    tensors = load_file(path / WEIGHTS)
    save_file({"model.norm.bias": tensors["model.norm.bias"]}, path / "b.safetensors")
    refused(path, r"model\.norm\.bias is in .* and in .*keep the files of one checkpoint")


@pytest.mark.parametrize(
    "name", ["config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", INDEX, "vocab.json"]
)
def test_a_link_that_leads_out(tiny, name):
    outside = tiny.parent / "secret"
    outside.write_bytes((tiny / name).read_bytes() if (tiny / name).exists() else b"{}")
    (tiny / name).unlink(missing_ok=True)
    (tiny / name).symlink_to(outside)
    assert name in refused(tiny, "leads out of its directory")


def test_a_gptq_setting_that_leads_out(tmp_path):
    write_gptq(tmp_path / "m", GPTQ, Settings(group_size=32))
    (tmp_path / "m" / "quantize_config.json").rename(tmp_path / "elsewhere")
    (tmp_path / "m" / "quantize_config.json").symlink_to(tmp_path / "elsewhere")
    refused(tmp_path / "m", "leads out of its directory")


def test_a_folder_called_snapshots_opens_no_door(tmp_path):
    """Links of the hub's cache lead to their own repository's folder, and no further."""
    path = write_checkpoint(tmp_path / "snapshots" / "tiny", SMALL)
    (path / "config.json").rename(tmp_path / "config.json")
    (path / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(EdgeError, match="leads out"):
        open_checkpoint(str(path))
    hub = tmp_path / "models--a--b"
    (hub / "blobs").mkdir(parents=True)
    shutil.move(tmp_path / "snapshots", hub / "snapshots")
    shutil.move(tmp_path / "config.json", hub / "blobs" / "0123")
    cached = hub / "snapshots" / "tiny"
    (cached / "config.json").unlink()
    (cached / "config.json").symlink_to("../../blobs/0123")
    assert open_checkpoint(str(cached)).config.hidden_size == 64
    shutil.move(hub / "blobs" / "0123", tmp_path / "models--c--d")
    (cached / "config.json").unlink()
    (cached / "config.json").symlink_to("../../../models--c--d")
    with pytest.raises(EdgeError, match="leads out"):
        open_checkpoint(str(cached))


def test_a_link_to_the_whole_directory_is_fine(tiny):
    link = tiny.parent / "link"
    link.symlink_to(tiny)
    inside = tiny / "really.json"
    (tiny / "config.json").rename(inside)
    (tiny / "config.json").symlink_to(inside)
    assert open_checkpoint(str(link)).config.hidden_size == 64


@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors", "x"])
def test_a_pipe_as_the_model_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with limited(), pytest.raises(EdgeError, match="no file"):
        open_checkpoint(str(tmp_path / name))


def test_a_pipe_among_the_weights_is_not_waited_for(tiny):
    os.mkfifo(tiny / "model-2.safetensors")
    refused(tiny, r"model-2\.safetensors is a folder, pipe or device")


# --- pickles and code


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_refused_by_name_with_the_reason(tiny, name):
    witness = tiny.parent / "witness"
    (tiny / WEIGHTS).unlink()
    (tiny / name).write_bytes(_pickle_that_writes(witness))
    assert name in refused(tiny, "a pickle, and opening a pickle can run any code")
    assert not witness.exists()


@pytest.mark.parametrize("disguise", ["pickle", "zip", "text", "gguf"])
def test_a_pickle_called_safetensors_is_not_opened_as_one(tiny, disguise):
    witness = tiny.parent / "witness"
    if disguise == "zip":  # what torch.save writes
        with zipfile.ZipFile(tiny / WEIGHTS, "w") as archive:
            archive.writestr("archive/data.pkl", _pickle_that_writes(witness))
    elif disguise == "gguf":
        write_tiny(tiny / WEIGHTS)
    else:
        content = {"pickle": _pickle_that_writes(witness), "text": b"version https://git-lfs"}
        (tiny / WEIGHTS).write_bytes(content[disguise])
    refused(tiny, r"model\.safetensors .*(cut off|claims|not safetensors)")
    assert not witness.exists()


def test_nothing_of_the_checkpoint_is_run_or_copied(tiny, tmp_path):
    """Code, a template that is code, and pickles lie beside weights that are whole."""
    witness = tmp_path / "witness"
    code = f"from pathlib import Path\nPath({str(witness)!r}).touch()\n"
    auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C", "AutoTokenizer": "evil.C"}
    for name in (
        "evil.py",
        "__init__.py",
        "modeling_stablelm_epoch.py",
        "tokenizers.py",
        "gguf.py",
    ):
        (tiny / name).write_text(code)
    (tiny / "pytorch_model.bin").write_bytes(_pickle_that_writes(witness))
    template = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**12) %}{% endfor %}"
    )
    for name in ("config.json", "tokenizer_config.json"):
        changes = {"auto_map": auto_map, "chat_template": template, "trust_remote_code": True}
        edit(tiny, name, lambda raw, changes=changes: raw.update(changes))
    (tiny / "generation_config.json").write_text(json.dumps({"auto_map": auto_map}))
    (tiny / "special_tokens_map.json").write_text(json.dumps({"auto_map": auto_map}))
    done = edge(tiny, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not witness.exists()
    files = [f for f in (tmp_path / "out").rglob("*") if f.is_file()]
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".gguf"}
    for file in files:
        assert b"evil" not in file.read_bytes(), file


def edge(model: Path, folder: Path):
    """The command, run inside the checkpoint, where its modules could be found."""
    return subprocess.run(
        [sys.executable, "-m", "edge", "convert", model, "--to", *MADE, "--out", folder / "out"],
        cwd=model,
        # As the installed script is; `python -m` by itself imports from where it is run.
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _pickle_that_writes(witness: Path) -> bytes:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (witness,))

    data = pickle.dumps(Evil())
    pickle.loads(data)  # it bites
    witness.unlink()
    return data


# --- from the command line


@pytest.mark.parametrize("kind", ["pipe", "deep", "nan"])
def test_the_command_prints_one_line_and_writes_nothing(tiny, kind):
    if kind == "pipe":
        (tiny / "config.json").unlink()
        os.mkfifo(tiny / "config.json")
    elif kind == "deep":
        (tiny / "tokenizer_config.json").write_text('{"auto_map": ' + "[" * 900 + "]" * 900 + "}")
    else:
        edit_tensors(tiny, lambda tensors: tensors[UP].fill(np.nan))
    done = edge(tiny, tiny.parent)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (out := tiny.parent / "out").exists() or list(out.iterdir()) == []

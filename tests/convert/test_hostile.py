"""Checkpoints made to harm are refused in one sentence; no code of theirs runs."""

import contextlib
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
from transformers import AutoTokenizer

import edge
from edge.convert.checkpoint import open_checkpoint
from edge.errors import EdgeError
from edge.generate.decode import generate_tokens
from edge.llama_cpp.session import LlamaSession
from edge.llama_cpp.vocabulary import read_tokenizer
from edge.model.load import load
from edge.quality.corpus import SourceText, make_windows
from edge.quality.evaluate import evaluate
from tests.support.conversions import MADE, make, refused
from tests.support.foreign_gguf import write_tiny
from tests.support.mutations import BASES, INDEX, SMALL, WEIGHTS
from tests.support.tiny import edit, edit_tensors, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
UP = "model.layers.0.mlp.up_proj.weight"
JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", INDEX)


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", SMALL)


@pytest.fixture
def mlx(tmp_path):
    return BASES["mlx"](tmp_path / "mlx")


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": ' + b"[" * 100_000, "nested deeper than"),
        (b'{"a": ' + b"1" * 5000 + b"}", "digits"),
        (b'{"a": 1, "a": 2}', "the key 'a' appears twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe{\0", "utf-8"),
    ],
    ids=["deep", "digits", "key twice", "NaN", "surrogate", "list", "UTF-16"],
)
def test_bad_json_is_refused(tiny, file, content, words):
    (tiny / file).write_bytes(content)
    assert file in refused(tiny, words)


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize("kind", ["folder", "pipe", "/dev/zero", "loop"])
def test_a_path_that_is_not_a_file_is_refused(tiny, file, kind):
    path = tiny / file
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(file if kind == "loop" else kind)
    assert file in refused(tiny, r"not a (regular )?file|leads out|circle|cannot be read")


def config(**changes):
    return "config.json", lambda raw: raw.update(changes)


def index(weight_map):
    return INDEX, lambda raw: raw.update(weight_map=weight_map)


def vocabulary(**ids):
    return "tokenizer.json", lambda raw: raw["model"]["vocab"].update(ids)


def added(**changes):
    return "tokenizer.json", lambda raw: raw["added_tokens"][0].update(changes)


ELSEWHERE = ("../tiny/model.safetensors", "/etc/passwd", "", "a/../model.safetensors")
ELSEWHERE += ("a\0.safetensors", "./model.safetensors", "model.bin")
HEADS = {"hidden_size": 2**30, "num_attention_heads": 2**29, "num_key_value_heads": 2**29}
HEADS |= {"qk_layernorm": True, "partial_rotary_factor": 1.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (config(num_hidden_layers=2**30), "asks for .* layers .* files hold"),
        (config(num_hidden_layers=10**4), "asks for .* layers .* files hold"),
        (config(**HEADS), "asks for .* layers .* files hold"),
        *((index({"a": WEIGHTS, "b": name}), "points outside") for name in ELSEWHERE),
        (index({"a": "x" * 5000 + ".safetensors", "b": WEIGHTS}), "has no x"),
        *((index(kind), "has no weight_map") for kind in (None, [], {"a": [WEIGHTS]})),
        (vocabulary(**{"!!": 10**9}), "token id 1000000000, .* embedding has 64 rows"),
        (vocabulary(**{"!!": 1}), "two tokens have one id"),
        (added(id=5), "an added token has two ids"),
        (("tokenizer.json", lambda t: t["model"].update(merges=["x y"])), "is not a tokenizer"),
        (("tokenizer.json", lambda t: t["model"].update(type="\x1b[2J")), "is not a tokenizer"),
    ],
)
def test_json_that_contradicts_the_files_is_refused(tiny, change, words):
    file, edited = change
    if file == INDEX:
        (tiny / INDEX).write_text("{}")
    edit(tiny, file, edited)
    for names in (MADE, ["mlx-fp16"]):  # without GGUF the tokenizer would only be copied
        refused(tiny, words, names)


def test_an_added_token_past_the_embedding_is_never_fed(tiny):
    """Transformers gives it the same id, which its network does not take either."""
    pad = {**json.loads((tiny / "tokenizer.json").read_text())["added_tokens"][0], "id": 64}
    edit(tiny, "tokenizer.json", lambda t: t["added_tokens"].append({**pad, "content": "[PAD]"}))
    (warning,) = open_checkpoint(str(tiny)).warnings
    assert "1 added tokens beyond the 64 rows" in warning
    mlx, gguf = make(tiny, tiny.parent / "out", "mlx-fp16", "gguf-f16")
    model, tokenizer = edge.load(mlx.path)
    ids = tokenizer.encode("a[PAD]")
    assert ids == AutoTokenizer.from_pretrained(tiny).encode("a[PAD]")
    with pytest.raises(EdgeError, match=r"token 64 .* leave"):
        generate_tokens(model, ids)
    windows = make_windows([SourceText("a", "a[PAD]" * 9)], tokenizer, "a", 8, None)
    with pytest.raises(EdgeError, match=r"token 64 .* leave"):
        evaluate([], None, windows, model.config, tiny, 1)
    with contextlib.closing(LlamaSession(gguf.path, 32, 1)) as session:
        assert max(read_tokenizer(session).encode("a[PAD]")) < 64


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_a_git_lfs_pointer_is_named(tiny, name):
    (tiny / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}")
    assert name in refused(tiny, "is a Git LFS pointer")


def test_links_within_the_directory_or_the_hubs_cache_are_followed(tmp_path):
    """Links of the hub's cache lead to their own repository's folder, and no further."""
    path = write_checkpoint(tmp_path / "models--a--b" / "snapshots" / "tiny", SMALL)
    config, blobs = path / "config.json", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    shutil.move(config, blobs / "0123")
    config.symlink_to("../../blobs/0123")
    (tmp_path / "link").symlink_to(path)
    assert open_checkpoint(str(tmp_path / "link")).config.hidden_size == 64
    assert load(tmp_path / "link")[0].config.hidden_size == 64
    shutil.move(blobs / "0123", tmp_path / "models--c--d")
    config.unlink()
    config.symlink_to("../../../models--c--d")
    refused(path, "leads out")
    (tmp_path / "models--a--b").rename(tmp_path / "other")  # any folder called snapshots
    refused(tmp_path / "other" / "snapshots" / "tiny", "leads out")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "model.ckpt", WEIGHTS])
@pytest.mark.parametrize("kind", ["pickle", "zip", "gguf"])
def test_pickles_are_refused_under_any_name(tiny, name, kind):
    witness = tiny.parent / "witness"
    (tiny / WEIGHTS).unlink()
    if kind == "zip":  # torch.save's format
        with zipfile.ZipFile(tiny / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle_that_writes(witness))
    elif kind == "gguf":
        write_tiny(tiny / name)
    else:
        (tiny / name).write_bytes(pickle_that_writes(witness))
    words = r"safetensors .*(cut off|claims|not safetensors)" if name == WEIGHTS else "a pickle"
    assert name in refused(tiny, words)
    assert not witness.exists()


def test_no_code_of_a_checkpoint_is_run_or_copied(tiny, tmp_path):
    """Modules, a template and a pickle lie beside valid weights."""
    witness = tmp_path / "witness"
    code = f"from pathlib import Path\nPath({str(witness)!r}).touch()\n"
    auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C", "AutoTokenizer": "evil.C"}
    for name in ("evil", "__init__", "modeling_stablelm_epoch", "tokenizers", "gguf"):
        (tiny / f"{name}.py").write_text(code)
    (tiny / "pytorch_model.bin").write_bytes(pickle_that_writes(witness))
    template = "{{ ''.__class__.__mro__ }}{% for i in range(10**12) %}{% endfor %}"
    changes = {"auto_map": auto_map, "chat_template": template, "trust_remote_code": True}
    for name in ("generation_config.json", "special_tokens_map.json"):
        (tiny / name).write_text("{}")
    for name in (*JSON_FILES[::2], "generation_config.json", "special_tokens_map.json"):
        edit(tiny, name, lambda raw: raw.update(changes))
    done = subprocess.run(
        [sys.executable, "-m", "edge", "convert", ".", "--to", *MADE, "--out", tmp_path / "out"],
        cwd=tiny,  # where its modules could be found
        # As the installed script is; `python -m` by itself imports from where it is run.
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not witness.exists()
    files = [f for f in (tmp_path / "out").rglob("*") if f.is_file()]
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".gguf"}
    for file in files:
        assert b"evil" not in file.read_bytes(), file


def pickle_that_writes(witness: Path) -> bytes:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (witness,))

    data = pickle.dumps(Evil())
    pickle.loads(data)
    witness.unlink()  # fails if loading did not run the code
    return data


@pytest.mark.parametrize(
    ("bad", "dtype"), [(np.nan, np.float16), (np.inf, np.float32), (-np.inf, np.float64)]
)
@pytest.mark.parametrize("name", [UP, "model.norm.bias"])
def test_values_that_are_not_finite_are_named_with_their_tensor(tiny, bad, dtype, name):
    def change(tensors):
        tensors[name] = tensors[name].astype(dtype)
        tensors[name].flat[-1] = bad

    edit_tensors(tiny, change)
    for names in (MADE, ["mlx-fp16"], ["mlx-int4"], ["gguf-q8_0"]):
        refused(tiny, f"tensor {name} holds values that are not finite", names)


@pytest.mark.parametrize("part", ["scales", "biases"])
def test_mlx_scales_that_are_not_finite_are_named(mlx, part):
    edit_tensors(mlx, lambda tensors: tensors[UP.replace("weight", part)].put(5, np.nan))
    for names in (["mlx-int4"], ["mlx-fp16"]):
        refused(mlx, r"up_proj\.(weight|scales|biases).* not finite", names)


@pytest.mark.parametrize("order", [[0] * 64, [-1, *range(1, 64)], [*range(63), 64], [*range(32)]])
def test_an_order_that_is_not_a_permutation_is_refused(mlx, order):
    gathered = {"model.layers.0.mlp.gate_up_order": np.array(order, np.int32)}
    edit_tensors(mlx, lambda tensors: tensors.update(gathered))
    refused(mlx, "gate_up_order", ["mlx-int4"])

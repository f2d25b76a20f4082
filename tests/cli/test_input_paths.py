"""Every option that takes a path refuses what cannot be read: one sentence, without waiting."""

import importlib
import os

import pytest

from tests.support.alarm import alarm

# PATH stands for the input.
OPTIONS = (
    *("convert PATH", "convert PATH.gguf", "convert PATH.gguf --to gguf-mended"),
    *("convert --verify PATH", "convert demo --verify PATH.gguf", "convert PATH --list"),
    "convert demo --to gguf-q4_k_m --out OUT --imatrix PATH",
    "convert demo --to mlx-int4 --out OUT --calibrate gptq --calibration PATH",
    *("bench PATH", "bench PATH.gguf", "bench PATH PATH.gguf", "bench --compare PATH PATH"),
    *("chat PATH -p x", "chat PATH.gguf -p x", "chat demo -p x --transcript PATH"),
    *("complete PATH:1", "complete --prefix x --context PATH", "complete --prefix x --model PATH"),
    *("complete --prefix x --model PATH.gguf", "eval PATH", "eval PATH.gguf"),
    *("eval demo --corpus PATH", "eval demo --fim PATH", "eval demo --humaneval PATH"),
    *("power --replay PATH", "report PATH", "report --check PATH", "report --devices PATH"),
)
KINDS = ["pipe", "device", "directory", "missing", "huge"]
if os.geteuid() != 0:  # root reads every file
    KINDS.append("unreadable")
CASES = [
    (words, kind)
    for words in OPTIONS
    for kind in KINDS
    if (kind != "missing" or "--transcript" not in words)  # which is made
]


def put(kind, path):
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "directory":
            path.mkdir()
        case "unreadable":
            path.touch(0)
        case "huge":
            path.touch()
            os.truncate(path, 1 << 40)  # sparse


@pytest.mark.parametrize(("words", "kind"), CASES)
def test_odd_inputs_are_refused_in_one_sentence(command, tmp_path, monkeypatch, words, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "input"
    for file in (path, tmp_path / "input.gguf"):
        put(kind, file)
    words = words.replace("PATH", str(path)).split()
    importlib.import_module(f"edge.cli.{words[0]}")
    with alarm():
        code, out, err = command(*words)
    assert code in (1, 2)
    (sentence,) = err.splitlines() or out.splitlines()[:1]  # --check prints its findings
    if kind in ("unreadable", "missing"):
        assert "again" not in sentence  # downloading does not help

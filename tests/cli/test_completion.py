"""The scripts of `edge completion`, run by real shells."""

import shutil
import subprocess
import sys

import pytest

from edge.cli.options.completion import SHELLS


def script(shell):
    command = [sys.executable, "-m", "edge", "completion", shell]
    return subprocess.check_output(command, text=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_accepts_its_script(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script(shell))
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_options_artefacts_and_files(tmp_path):
    (tmp_path / "story.jsonl").touch()
    (tmp_path / "storage").mkdir()
    (tmp_path / "script").write_text(
        script("bash") + 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_edge\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    for words, wanted in {
        "con": ["convert"],
        "convert --to gguf-q6": ["gguf-q6_k"],
        "bench demo --rows mlx-fp16 mlx-int4": ["mlx-int4"],
        "bench --su": ["--suite"],
        "bench --suite t": ["table11"],
        "bench --save sto": ["storage"],
        "chat --transcript sto": ["storage", "story.jsonl"],
        "complete stor": ["storage", "story.jsonl"],
    }.items():
        line = ["bash", "script", "edge", *words.split()]
        found = subprocess.check_output(line, cwd=tmp_path, text=True)
        assert sorted(found.split()) == wanted, words

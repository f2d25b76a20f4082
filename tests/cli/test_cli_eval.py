"""`edge eval`: perplexity and divergence at the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli.main import main
from edge.convert.artefacts.recipes import TABLE_11
from edge.quality.sizes import TOKENS, WINDOW_TOKENS, WINDOWS
from tests.support.tiny import PLAIN, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
KEYS = ("artefact", "perplexity", "bits_per_byte", "kl_mean", "kl_p99", "top1_agreement")
TEXT = "".join(chr(33 + i * i % 90) for i in range(300))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a tiny checkpoint and a text that its tokenizer has all letters of."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "tiny", PLAIN)
    (tmp_path / "text.py").write_text(TEXT)
    return tmp_path


def edge_eval(*words):
    return main(["eval", "tiny", "--corpus", "text.py", "--window", "16", *words])


def as_json(capsys, *words):
    assert edge_eval("-o", "json", *words) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words):
    assert main(["eval", *words]) == 1
    done = capsys.readouterr()
    assert done.out == ""
    (line,) = done.err.splitlines()
    return line


def test_the_json_has_a_row_per_artefact(here, capsys):
    found = as_json(capsys, "--rows", "mlx-fp16", "mlx-int4", "gguf-f16", "--tokens", "128")
    assert [row["artefact"] for row in found["rows"]] == ["mlx-fp16", "mlx-int4", "gguf-f16"]
    assert all(set(KEYS) <= set(row) for row in found["rows"])
    assert (found["window"], found["reference"]) == (16, "mlx-fp16")
    corpus = found["corpus"]
    assert (corpus["name"], corpus["bytes"], corpus["tokens"]) == ("text.py", 300, 8 * 15)
    assert (corpus["windows"], corpus["windows_left_out"]) == (8, 10)
    assert re.fullmatch("[0-9a-f]{64}", corpus["sha256"])
    reference, int4, f16 = found["rows"]
    assert reference["is_reference"]
    assert (reference["kl_max"], reference["top1_agreement"]) == (0, 1)
    assert int4["kl_mean"] > f16["kl_mean"] > 0
    assert f16["perplexity_ratio"] == pytest.approx(1, abs=1e-2)
    low, high = int4["perplexity_ratio_ci95"]
    assert low < int4["perplexity_ratio"] < high
    assert found["notes"]
    assert sorted(p.name.split("-")[0] for p in (here / "models/tiny/eval").iterdir())


def test_the_reference_is_a_row_though_it_was_not_asked_for(here, capsys):
    found = as_json(capsys, "--rows", "mlx-int4", "--reference", "gguf-f16")
    assert [row["artefact"] for row in found["rows"]] == ["gguf-f16", "mlx-int4"]
    assert [row["is_reference"] for row in found["rows"]] == [True, False]


def test_without_a_reference_there_is_null_and_a_reason(here, capsys):
    found = as_json(capsys, "--rows", "mlx-int4", "--reference", "none")
    (row,) = found["rows"]
    assert row["perplexity"] > 1
    assert row["kl_mean"] is row["kl_p99"] is row["top1_agreement"] is None
    assert "no reference" in row["reasons"][0]


def test_the_table_names_the_reference_and_what_was_scored(here, capsys):
    assert edge_eval("--rows", "mlx-fp16", "gguf-f16", "--worst", "2", "--tokens", "64") == 0
    out = capsys.readouterr().out
    assert "FP16 (reference)" in out
    assert "60 tokens (" in out
    assert "in 4 windows of 16" in out
    assert "windows were left out" in out
    assert out.count("- KL ") == 2
    rule = out.splitlines()[1]
    assert set(rule) <= set("|-: ")


def test_the_worst_are_in_the_json(here, capsys):
    found = as_json(capsys, "--rows", "mlx-fp16", "mlx-int4", "--worst", "3")
    reference, int4 = found["rows"]
    assert "worst" not in reference
    kl = [place["kl"] for place in int4["worst"]]
    assert kl == sorted(kl, reverse=True)
    assert kl[0] == pytest.approx(int4["kl_max"])
    assert {"before", "next", "reference", "artefact"} <= set(int4["worst"][0])


def test_all_of_the_corpus_and_again(here, capsys):
    first = as_json(capsys, "--rows", "mlx-int4", "--tokens", "0")
    assert first["corpus"]["windows_left_out"] == 0
    assert as_json(capsys, "--rows", "mlx-int4", "--tokens", "0", "--again") == first


def test_without_sizes_the_windows_are_as_long_as_the_context_allows(here, capsys):
    (here / "text.py").write_text(TEXT * 20)
    words = ("--corpus", "text.py", "--rows", "mlx-fp16", "-o", "json")
    assert main(["eval", "tiny", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["window"], found["corpus"]["windows"]) == (256, TOKENS // 256)


def test_help_says_what_is_measured_by_default(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"(default: {TOKENS}, or {WINDOWS} windows if that is more)" in said
    assert f"(default: {WINDOW_TOKENS}, or the model's context" in said
    assert " ".join(TABLE_11) in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "text.py is empty"),
        (b"\0", "text.py is binary"),
        (b"abc", "fill no window of 16"),
    ],
)
def test_a_corpus_that_is_none_is_refused(content, said, here, capsys):
    (here / "text.py").write_bytes(content)
    assert said in refused(capsys, "tiny", "--corpus", "text.py", "--window", "16")
    assert not (here / "models").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--corpus", "none.py"), "none.py is missing"),
        (("--corpus", "text.py", "--window", "257"), "longer than the model's context of 256"),
        (("--corpus", "text.py", "--window", "1"), "scores no token"),
        (("--corpus", "text.py", "--window", "64", "--tokens", "63"), "fills no window of 64"),
        (("--worst", "1", "--reference", "none"), "--worst shows"),
        (("--samples", "3"), "--samples is of middles"),
        (("--max-tokens", "9"), "name --fim or --humaneval too"),
    ],
)
def test_arguments_that_cannot_be_met_are_refused(words, said, here, capsys):
    assert said in refused(capsys, "tiny", *words)


def test_random_weights_are_refused_before_they_are_made(here, capsys):
    line = refused(capsys, "synthetic:stable-code-3b")
    assert "has random weights: they have no quality" in line
    assert not (here / "models").exists()


def test_artefacts_of_another_model_in_the_folder_are_refused(here, capsys):
    assert edge_eval("--rows", "gguf-f16", "--reference", "none", "--out", "o") == 0
    capsys.readouterr()
    write_checkpoint(here / "other", PLAIN, seed=1)
    words = ("--corpus", "text.py", "--window", "16", "--rows", "gguf-f16", "--out", "o")
    line = refused(capsys, "other", *words, "--reference", "none")
    assert "was made from another checkpoint" in line


def test_an_unknown_reference_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--reference", "mlx-int99"])
    assert "unknown artefact 'mlx-int99'" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("output", ["md", "json"])
def test_a_full_disk_under_stdout_is_one_sentence(here, output):
    words = ("tiny", "--corpus", "text.py", "--window", "16", "--rows", "mlx-fp16", "-o", output)
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "edge", "eval", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "stdout cannot be written (No space left" in line

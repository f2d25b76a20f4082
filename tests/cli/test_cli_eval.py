"""`edge eval` as a user calls it."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from edge.quality import TOKENS
from tests.support.tiny import PLAIN, write_checkpoint

TEXT = "".join(chr(33 + i * i % 90) for i in range(300))
TINY = ("eval", "tiny", "--corpus", "text.py", "--window", "16")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a tiny checkpoint and a text of characters in its vocabulary."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "tiny", PLAIN)
    (tmp_path / "text.py").write_text(TEXT)
    return tmp_path


def test_row_per_artefact_in_json_and_table(here, command):
    words = ("--rows", "mlx-fp16", "mlx-int4", "gguf-f16", "--tokens", "128", "--worst", "3")
    found = command.json(*TINY, *words)
    assert [row["artefact"] for row in found["rows"]] == ["mlx-fp16", "mlx-int4", "gguf-f16"]
    assert (found["window"], found["reference"], found["model"]["name"]) == (16, "mlx-fp16", "tiny")
    assert {**found["corpus"], "sha256": 64} == {
        "name": "text.py", "sha256": 64, "texts": 1, "bytes": 300, "tokens": 8 * 15,
        "scored_bytes": 8 * 15, "windows": 8, "windows_left_out": 10,
    }  # fmt: skip
    reference, int4, f16 = found["rows"]
    assert (reference["is_reference"], int4["is_reference"]) == (True, False)
    assert (reference["kl_max"], reference["top1_agreement"]) == (0, 1)
    assert int4["kl_mean"] > f16["kl_mean"] > 0
    low, high = int4["perplexity_ratio_ci95"]
    assert low < int4["perplexity_ratio"] < high
    assert int4["bits_per_weight"] < f16["bits_per_weight"]
    assert found["notes"] and "worst" not in reference
    kl = [place["kl"] for place in int4["worst"]]
    assert len(kl) == 3 and kl == sorted(kl, reverse=True)
    assert kl[0] == pytest.approx(int4["kl_max"])
    assert command.json(*TINY, *words, "--again") == found
    assert len(list((here / "models/tiny/eval").iterdir())) == 3
    text = command(*TINY, *words)[1]
    for part in ("FP16 (reference)", "120 tokens (", "in 8 windows of 16", "windows were left out"):
        assert part in text
    assert text.count("- KL ") == 6


def test_reference_window_and_tokens_can_be_chosen(here, command):
    found = command.json(*TINY, "--rows", "mlx-int4", "--reference", "gguf-f16", "--tokens", "0")
    assert [row["artefact"] for row in found["rows"]] == ["gguf-f16", "mlx-int4"]
    assert found["corpus"]["windows_left_out"] == 0
    (here / "text.py").write_text(TEXT * 20)
    words = ("--corpus", "text.py", "--rows", "mlx-int4", "--reference", "none")
    found = command.json("eval", "tiny", *words)
    assert (found["window"], found["corpus"]["windows"]) == (256, TOKENS // 256)
    (row,) = found["rows"]
    assert row["perplexity"] > 1 and row["kl_mean"] is row["top1_agreement"] is None
    assert "no reference" in row["reasons"][0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny", "--corpus", "blank.py"], "0 tokens of blank.py are too few"),
        (["tiny", "--window", "257"], "longer than the model's context of 256"),
        (["--worst", "1", "--reference", "none"], "--worst compares"),
        (["synthetic:stable-code-3b"], "has random weights"),
        (["--fim", "short.py"], "different single-line holes were found"),
        (["--fim", "--humaneval", "x"], "leave one out"),
        (["--fim", "--max-tokens", "257"], "choose at most 256"),
        (["--humaneval", "short.py"], "line 1 of short.py is not"),
        (["tiny", "--fim"], "no tokens for filling in the middle"),
    ],
)
def test_bad_input_is_one_error_line_and_nothing_is_made(words, said, here, command):
    Path("blank.py").write_text(" \n")
    Path("short.py").write_text("x=1\n")
    error = command.refused("eval", *words)
    assert error.startswith("edge eval: ") and said in error
    assert not (here / "models").exists()


def test_infilling_as_rows_samples_and_table(command, demo_out, tmp_path, held_out_text):
    artefacts, code, out = ("mlx-fp16", "gguf-f16"), tmp_path / "code", tmp_path / "out"
    shutil.copytree(demo_out / "mlx-fp16", out / "mlx-fp16", copy_function=os.link)
    os.link(demo_out / "gguf-f16.gguf", out / "gguf-f16.gguf")
    code.mkdir()
    (code / "a.py").write_text(held_out_text[:500])
    (code / "b.py").write_text(held_out_text[500:900].replace("\n", "\r\n"), newline="")
    words = ("eval", "--out", out, "--threads", "1", "--max-tokens", "8", "--rows", *artefacts)
    holes = ("--corpus", code, "--fim", "--samples", "3", "--show", "1")
    document = command.json(*words, *holes)
    rows, kinds = document["rows"], ["single-line", "multi-line"]
    assert [(r["artefact"], r["kind"]) for r in rows] == [(a, k) for a in artefacts for k in kinds]
    assert all(row["samples"] == 3 == sum(row["stopped_by"].values()) for row in rows)
    assert [entry["kind"] for entry in document["samples"]] == kinds
    assert set(document["samples"][0]["got"]) == set(artefacts)
    text = command(*words, *holes)[1]
    assert (text.count("  expected  "), text.count("\n| mlx-fp16")) == (2, 2)
    assert all(line.isprintable() for line in text.splitlines())
    names = ("SingleLineInfilling/0", "SingleLineInfilling/1", "RandomSpanInfilling/0")
    task = {"prompt": "x = a + b  #", "suffix": "\nreturn x\n", "canonical_solution": " sum"}
    lines = [json.dumps({"task_id": name, **task}) for name in names]
    (tmp_path / "tasks.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    rows = command.json(*words, "--humaneval", tmp_path / "tasks.gz")["rows"]
    found = [(row["kind"], row["samples"]) for row in rows]
    assert found == [("humaneval-single-line", 2), ("humaneval-random-span", 1)] * 2

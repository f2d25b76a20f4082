"""`edge eval` as a user calls it."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from edge.cli.main import main
from edge.quality import TOKENS
from tests.support.tiny import PLAIN, write_checkpoint

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


def test_json_has_a_row_per_artefact(here, capsys):
    words = ("--rows", "mlx-fp16", "mlx-int4", "gguf-f16", "--tokens", "128", "--worst", "3")
    found = as_json(capsys, *words)
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
    assert as_json(capsys, *words, "--again") == found
    assert len(list((here / "models/tiny/eval").iterdir())) == 3


def test_reference_is_a_row_or_none(here, capsys):
    found = as_json(capsys, "--rows", "mlx-int4", "--reference", "gguf-f16", "--tokens", "0")
    assert [row["artefact"] for row in found["rows"]] == ["gguf-f16", "mlx-int4"]
    assert found["corpus"]["windows_left_out"] == 0
    (row,) = as_json(capsys, "--rows", "mlx-int4", "--reference", "none")["rows"]
    assert row["perplexity"] > 1 and row["kl_mean"] is row["top1_agreement"] is None
    assert "no reference" in row["reasons"][0]


def test_table_names_the_reference_and_what_was_scored(here, capsys):
    assert edge_eval("--rows", "mlx-fp16", "gguf-f16", "--worst", "2", "--tokens", "64") == 0
    out = capsys.readouterr().out
    for part in ("FP16 (reference)", "60 tokens (", "in 4 windows of 16", "windows were left out"):
        assert part in out
    assert out.count("- KL ") == 2


def test_windows_are_as_long_as_the_context_by_default(here, capsys):
    (here / "text.py").write_text(TEXT * 20)
    words = ("--corpus", "text.py", "--rows", "mlx-fp16", "-o", "json")
    assert main(["eval", "tiny", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["window"], found["corpus"]["windows"]) == (256, TOKENS // 256)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny", "--corpus", "blank.py"], "blank.py holds no text"),
        (["tiny", "--corpus", "short.py", "--window", "16"], "fill no window of 16"),
        (["tiny", "--window", "257"], "longer than the model's context of 256"),
        (["--worst", "1", "--reference", "none"], "--worst shows"),
        (["synthetic:stable-code-3b"], "has random weights: they have no quality"),
        (["--fim", "short.py"], "different single-line holes; ask for fewer --samples"),
        (["--fim", "--humaneval", "x"], "leave one out"),
        (["--humaneval", "short.py", "--corpus", "blank.py"], "--corpus is another source"),
        (["--fim", "--window", "64"], "--window is of perplexity"),
        (["--fim", "--max-tokens", "257"], "choose at most 256"),
        (["--humaneval", "short.py"], "line 1 of short.py is not"),
        (["tiny", "--fim"], "no <fim_prefix>, <fim_suffix>, <fim_middle>"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_made(words, said, here, capsys):
    Path("blank.py").write_text(" \n")
    Path("short.py").write_text("x=1\n")
    assert main(["eval", *words]) == 1
    done = capsys.readouterr()
    assert done.err.startswith("edge eval: ") and said in done.err
    assert (done.out, done.err.count("\n")) == ("", 1)
    assert not (here / "models").exists()


ROWS = ("mlx-fp16", "gguf-f16")
QUICK = ("--rows", *ROWS, "--samples", "3", "--max-tokens", "8", "--threads", "1")


@pytest.fixture
def evaluate_demo(demo_out, tmp_path, capsys):
    """Runs the command on the demo in a folder with some of its artefacts; its stdout."""
    out = tmp_path / "out"
    shutil.copytree(demo_out / ROWS[0], out / ROWS[0], copy_function=os.link)
    os.link(demo_out / f"{ROWS[1]}.gguf", out / f"{ROWS[1]}.gguf")

    def run(*words):
        assert main(["eval", *map(str, words), "--out", str(out)]) == 0
        return capsys.readouterr().out

    return run


def test_middles_as_rows_samples_and_table(evaluate_demo, tmp_path, held_out_text):
    code = tmp_path / "code"
    code.mkdir()
    (code / "a.py").write_text(held_out_text[:500])
    (code / "b.py").write_text(held_out_text[500:900].replace("\n", "\r\n"), newline="")
    words = ("--corpus", code, "--fim", *QUICK, "--show", "1")
    document = json.loads(evaluate_demo(*words, "-o", "json"))
    rows, kinds = document["rows"], ["single-line", "multi-line"]
    assert [(r["artefact"], r["kind"]) for r in rows] == [(a, k) for a in ROWS for k in kinds]
    assert all(row["samples"] == 3 == sum(row["stopped_by"].values()) for row in rows)
    changes = [row["change"] and row["change"]["reference"] for row in rows]
    assert changes == [None, None, "mlx-fp16", "mlx-fp16"]
    assert [entry["kind"] for entry in document["samples"]] == kinds
    assert set(document["samples"][0]["got"]) == set(ROWS)
    method = document["method"]
    assert (method["seed"], method["order"], method["window_tokens"]) == (0, "psm", 512)
    text = evaluate_demo(*words)
    assert (text.count("  expected  "), text.count("\n| mlx-fp16")) == (2, 2)
    assert all(line.isprintable() for line in text.splitlines())


def test_humaneval_is_scored_by_kind(evaluate_demo, tmp_path):
    names = ("SingleLineInfilling/0", "SingleLineInfilling/1", "RandomSpanInfilling/0")
    task = {"prompt": "x = a + b  #", "suffix": "\nreturn x\n", "canonical_solution": " sum"}
    lines = [json.dumps({"task_id": name, **task}) for name in names]
    (tmp_path / "tasks.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    words = ("--humaneval", tmp_path / "tasks.gz", "--rows", "mlx-fp16", "--max-tokens", "1")
    rows = json.loads(evaluate_demo(*words, "-o", "json"))["rows"]
    kinds = [("humaneval-single-line", 2), ("humaneval-random-span", 1)]
    assert [(row["kind"], row["samples"]) for row in rows] == kinds

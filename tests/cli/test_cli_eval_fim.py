"""`edge eval --fim` and `--humaneval` as a user calls them."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
ROWS = ("mlx-fp16", "gguf-f16")
QUICK = ("--rows", *ROWS, "--samples", "3", "--max-tokens", "8", "--threads", "1")


@pytest.fixture
def out(demo_out, tmp_path):
    """A folder with some of the demo's artefacts that can be written to."""
    out = tmp_path / "out"
    shutil.copytree(demo_out / ROWS[0], out / ROWS[0], copy_function=os.link)
    os.link(demo_out / f"{ROWS[1]}.gguf", out / f"{ROWS[1]}.gguf")
    return out


@pytest.fixture
def code(tmp_path, held_out_text):
    """A folder with two short files."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "a.py").write_text(held_out_text[:500])
    (folder / "b.py").write_text(held_out_text[500:900].replace("\n", "\r\n"), newline="")
    return folder


@pytest.fixture
def evaluate(out, capsys):
    """Runs the command on the demo; its stdout."""

    def run(*words):
        assert main(["eval", *map(str, words), "--out", str(out)]) == 0
        return capsys.readouterr().out

    return run


def test_rows_samples_and_table(evaluate, code):
    words = ("--corpus", code, "--fim", *QUICK, "--show", "1")
    document = json.loads(evaluate(*words, "-o", "json"))
    rows, kinds = document["rows"], ["single-line", "multi-line"]
    assert [(r["artefact"], r["kind"]) for r in rows] == [(a, k) for a in ROWS for k in kinds]
    for row in rows:
        assert row["samples"] == 3 == sum(row["stopped_by"].values())
        assert row["seconds"] > 0
    changes = [row["change"] and row["change"]["reference"] for row in rows]
    assert changes == [None, None, "mlx-fp16", "mlx-fp16"]
    # Weights in half precision on both: the same middles.
    for ours, theirs in zip(rows[:2], rows[2:], strict=True):
        assert ours["edit_similarity"] == pytest.approx(theirs["edit_similarity"], abs=0.2)
    assert [entry["kind"] for entry in document["samples"]] == kinds
    assert set(document["samples"][0]["got"]) == set(ROWS)
    method = document["method"]
    assert (method["seed"], method["order"], method["window_tokens"]) == (0, "psm", 512)
    text = evaluate(*words)
    assert (text.count("  expected  "), text.count("\n| mlx-fp16")) == (2, 2)
    assert all(line.isprintable() for line in text.splitlines())


KILLED = """
import os, signal, sys
from edge.cli.main import main
from edge.generate.fim import Infiller
calls, complete = [], Infiller.complete
def counted(*hole, **options):
    calls.append(hole)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return complete(*hole, **options)
Infiller.complete = counted
main(sys.argv[1:])
"""


def test_killed_run_ends_as_if_it_had_not_been(evaluate, out, code):
    words = ["--fim", str(code), *QUICK, "-o", "json"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "eval", *words, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    (file,) = (out / "eval" / "middles").iterdir()
    first = file.read_bytes()
    assert len(first.splitlines()) == 1 + 3
    after = json.loads(evaluate(*words))
    assert file.read_bytes().startswith(first)
    shutil.rmtree(out / "eval")
    fresh = json.loads(evaluate(*words))
    for document in (after, fresh):
        for row in document["rows"]:
            del row["seconds"]
    assert after == fresh


def test_humaneval_is_scored_by_kind(evaluate, tmp_path):
    names = ("SingleLineInfilling/0", "SingleLineInfilling/1", "RandomSpanInfilling/0")
    task = {"prompt": "x = a + b  #", "suffix": "\nreturn x\n", "canonical_solution": " sum"}
    lines = [json.dumps({"task_id": name, **task}) for name in names]
    (tmp_path / "tasks.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    words = ("--humaneval", tmp_path / "tasks.gz", "--rows", "mlx-fp16", "--max-tokens", "1")
    rows = json.loads(evaluate(*words, "-o", "json"))["rows"]
    assert [(row["kind"], row["samples"]) for row in rows] == [
        ("humaneval-single-line", 2), ("humaneval-random-span", 1),
    ]  # fmt: skip
    assert rows[1]["edit_similarity_ci95"] is None

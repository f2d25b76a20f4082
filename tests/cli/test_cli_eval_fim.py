"""`edge eval --fim` and `--humaneval` as a user calls them."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from edge.cli.main import main
from tests.support.tiny import PLAIN, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
ROWS = ("mlx-fp16", "gguf-f16")
QUICK = ("--rows", *ROWS, "--samples", "3", "--max-tokens", "8", "--threads", "1")


@pytest.fixture
def out(demo_out, tmp_path):
    """A folder with some of the demo's artefacts that can be written to."""
    out = tmp_path / "out"
    out.mkdir()
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
    """Runs the command on the demo; exit code, stdout, stderr."""

    def run(*words):
        exit_code = main(["eval", *map(str, words), "--out", str(out)])
        return exit_code, *capsys.readouterr()

    return run


def task(name):
    return {
        "task_id": name,
        "prompt": "def add(a, b):\n    x = a + b  #",
        "suffix": "\n    return a + b\n",
        "canonical_solution": " sum",
        "entry_point": "add",
        "test": "def check(f):\n    assert f(1, 2) == 3\n",
    }


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "tasks.jsonl.gz"
    names = (
        "SingleLineInfilling/HumanEval/0/L0",
        "SingleLineInfilling/HumanEval/1/L0",
        "RandomSpanInfilling/HumanEval/0/1",
    )
    lines = [json.dumps(task(name)) for name in names]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def test_rows_are_there_for_every_artefact_and_kind(evaluate, code):
    exit_code, text, _ = evaluate("--fim", code, *QUICK, "-o", "json", "--show", "1")
    document = json.loads(text)
    assert exit_code == 0
    rows = document["rows"]
    assert [(row["artefact"], row["kind"]) for row in rows] == [
        (artefact, kind) for artefact in ROWS for kind in ("single-line", "multi-line")
    ]
    for row in rows:
        assert row["samples"] == 3 == sum(row["stopped_by"].values())
        low, high = row["exact_match_ci95"]
        assert 0 <= low <= row["exact_match"] <= high <= 1
        low, high = row["edit_similarity_ci95"]
        assert 0 <= low <= row["edit_similarity"] <= high <= 1
        assert row["seconds"] > 0
    assert [row["change"] is None for row in rows] == [True, True, False, False]
    assert all(row["change"]["reference"] == "mlx-fp16" for row in rows[2:])
    # Weights in half precision on both: the same middles.
    assert [row["edit_similarity"] for row in rows[:2]] == [
        pytest.approx(row["edit_similarity"], abs=0.2) for row in rows[2:]
    ]
    assert [entry["kind"] for entry in document["samples"]] == ["single-line", "multi-line"]
    assert set(document["samples"][0]["got"]) == set(ROWS)
    assert document["method"]["seed"] == 0


def test_the_table_and_samples(evaluate, code):
    exit_code, text, errors = evaluate(
        "--corpus", code, "--fim", "--seed", "4", *QUICK[3:], "--show", "2", "--rows", "mlx-fp16"
    )
    assert (exit_code, errors) == (0, "")
    assert text.count("  expected  ") == 4
    assert text.count("\n| mlx-fp16") == 2
    assert all(line.isprintable() for line in text.splitlines())


def test_a_run_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(evaluate, out, code):
    words = ["--fim", str(code), *QUICK, "-o", "json"]
    killed = f"""
import os, signal
from edge.cli.main import main
from edge.generate.fim import Infiller
calls, complete = [], Infiller.complete
def counted(*hole, **options):
    calls.append(hole)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return complete(*hole, **options)
Infiller.complete = counted
main({["eval", *words, "--out", str(out)]!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = subprocess.run([sys.executable, "-c", killed], env=environment, check=False).returncode
    assert code == -signal.SIGKILL
    (journal,) = (out / "eval" / "middles").iterdir()
    assert len(journal.read_text().splitlines()) == 1 + 3
    first = journal.read_bytes()
    after = json.loads(evaluate(*words)[1])
    assert journal.read_bytes().startswith(first)
    shutil.rmtree(out / "eval")
    fresh = json.loads(evaluate(*words)[1])
    for document in (after, fresh):
        for row in document["rows"]:
            del row["seconds"]
    assert after == fresh


def test_middles_of_another_dtype_are_made_anew(evaluate, out, code, monkeypatch):
    words = ("--fim", code, "--rows", "mlx-fp16", *QUICK[3:])
    assert evaluate(*words)[0] == 0
    monkeypatch.setattr("edge.quality.subject.compute_dtype", lambda: mx.bfloat16)
    assert evaluate(*words)[0] == 0
    assert len(list((out / "eval" / "middles").iterdir())) == 2


def test_humaneval_is_scored_by_kind(evaluate, tasks):
    exit_code, text, _ = evaluate("--humaneval", tasks, *QUICK[:1], "mlx-fp16", "-o", "json",
                                  "--max-tokens", "1")  # fmt: skip
    rows = json.loads(text)["rows"]
    assert exit_code == 0
    assert [(row["kind"], row["samples"]) for row in rows] == [
        ("humaneval-single-line", 2), ("humaneval-random-span", 1),
    ]  # fmt: skip
    assert rows[1]["edit_similarity_ci95"] is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fim", "nowhere"], "nowhere"),
        (["--fim", "blank.py"], "blank.py"),
        (["--fim", "short.py"], "different single-line holes; ask for fewer --samples"),
        (["--fim", "--humaneval", "x"], "leave one out"),
        (["--fim", "short.py", "--corpus", "blank.py"], "--corpus is another source"),
        (["--humaneval", "short.py", "--corpus", "blank.py"], "--corpus is another source"),
        (["--fim", "--window", "64"], "--window is of perplexity"),
        (["--fim", "--worst", "1"], "--worst is of perplexity"),
        (["--humaneval", "x", "--again"], "--again is of perplexity"),
        (["--fim", "--max-tokens", "257"], "choose at most 256"),
        (["--humaneval", "nowhere"], "nowhere is not there"),
        (["--humaneval", "short.py"], "line 1 of short.py is no JSON"),
        (["synthetic:stable-code-3b", "--fim"], "random weights"),
        (["tiny", "--fim"], "no <fim_prefix>, <fim_suffix>, <fim_middle>"),
    ],
)
def test_bad_input_is_one_sentence(evaluate, out, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    Path("blank.py").write_text(" \n")
    Path("short.py").write_text("x = 1\n")
    write_checkpoint(tmp_path / "tiny", PLAIN)
    exit_code, text, errors = evaluate(*words)
    assert (exit_code, text) == (1, "")
    assert errors.startswith("edge eval: ") and sentence in errors
    assert errors.count("\n") == 1
    assert not (out / "eval").exists()


@pytest.mark.parametrize("words", [["--samples", "0"], ["--order", "x"], ["--show", "-1"]])
def test_wrong_arguments(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "--fim", *words])
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err

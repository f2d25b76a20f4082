"""Commands as a user types them: help, wrong arguments, Ctrl-C, whole runs."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from edge.cli import main as entry
from edge.cli.main import COMMANDS
from tests.support.tiny import PLAIN, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
# Neither the memory bandwidth is measured nor the logits are compared.
QUICK = ("--rounds", "1", "--min-window", "0", "--bandwidth-gb-s", "10", "--no-check")
HEAVY = "mlx mlx_lm matplotlib transformers rich prompt_toolkit llama_cpp numpy jinja2"


def edge(*words, cwd=ROOT, script=None, stdout=subprocess.PIPE):
    """Run the command in a process of its own."""
    command = [ROOT / script] if script else ["-m", "edge"]
    return subprocess.run(
        [sys.executable, *command, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=ENVIRONMENT,
        timeout=300,
        check=False,
    )


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", PLAIN)


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        *((f"{command} --help", HEAVY) for command in ("", *COMMANDS)),
        ("--version", HEAVY),
        ("complete --prefix x --top-p 0.9 --repetition-penalty 1.1 --temperature 0.5 -n 3",
         "transformers mlx_lm numpy matplotlib rich jinja2 huggingface_hub safetensors"),
        ("chat -p x -q --temperature 0.5 -n 3",
         "prompt_toolkit pygments rich matplotlib transformers"),
        ("convert demo --to mlx-int4 gguf-q8_0", "transformers matplotlib mlx_lm"),
    ],
)  # fmt: skip
def test_unused_packages_are_not_imported(words, heavy, tmp_path):
    code = (
        "import sys\nfrom edge.cli.main import main\n"
        f"try: assert main({words.split()}) == 0\n"
        "except SystemExit as done: assert not done.code\n"
        f"print('|', sorted(set({heavy.split()}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        cwd=tmp_path, env=ENVIRONMENT, check=True,
    )  # fmt: skip
    printed, imported = done.stdout.rsplit("|", 1)
    assert printed.strip() or heavy != HEAVY  # a sampled answer may be empty
    assert imported == " []\n"


MISSING = (
    *(
        "report gone.json",
        "report --devices gone",
        "bench --compare gone gone",
        "bench gone/x.gguf",
    ),
    *(
        "bench here -m ./gone",
        "bench -p 8 -ngl 99 -mmp 1 here/gone",
        "eval gone.gguf",
        "eval ~/gone",
    ),
    *("eval --corpus gone", "eval --fim gone", "convert here/gone", "convert here --verify gone"),
    *("chat here/gone", "complete --model here/gone", "complete --prefix x --context gone"),
    *("power --replay gone", "convert here --imatrix gone"),
)


def test_missing_inputs_are_refused_before_heavy_packages_are_imported(tmp_path):
    (tmp_path / "here").mkdir()
    code = (
        "import sys\nfrom edge.cli.main import main\n"
        f"print([main(words.split()) for words in {MISSING}])\n"
        f"print(set({HEAVY.split()}) & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        cwd=tmp_path, env=ENVIRONMENT, check=True,
    )  # fmt: skip
    assert done.stdout == f"{[1] * len(MISSING)}\nset()\n"
    lines = done.stderr.splitlines()
    assert ["is missing; check the path" in line for line in lines] == [True] * len(MISSING)


def test_ctrl_c_during_imports_prints_one_line(monkeypatch, capsys):
    monkeypatch.setattr(entry, "import_module", Mock(side_effect=KeyboardInterrupt))
    assert entry.main(["convert", "--help"]) == 130
    assert entry.run_one("convert", "convert.py") == 130
    assert capsys.readouterr().err == "edge convert: interrupted\nconvert.py: interrupted\n"


def test_modules_in_the_current_folder_are_not_imported(tiny, tmp_path):
    """A folder downloaded with a model may contain them; child processes are covered too."""
    folder, ran = tmp_path / "cloned", tmp_path / "ran"
    folder.mkdir()
    for name in ("json", "numpy", "argparse", "llama_cpp", "mlx", "edge", "tqdm", "gguf"):
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r})\n")
    out, rows = ("--out", folder / "out"), ("mlx-fp16", "gguf-q8_0")  # quantised in a child
    done = edge(tiny, "--to", *rows, *out, cwd=folder, script="convert.py")
    assert (done.returncode, ran.exists()) == (0, False), done.stderr
    words = ("-p", "8", "-n", "4", "-r", "1", "--rounds", "1", "--min-window", "0", "--peers")
    done = edge(tiny, "--rows", *rows, *out, *words, cwd=folder, script="bench.py")
    assert (done.returncode, ran.exists()) == (0, False), done.stderr


@pytest.fixture
def refused(tiny, tmp_path, monkeypatch, command):
    """refused(words, code): the only error line; the folder is unchanged."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    damaged = write_checkpoint(tmp_path / "damaged", PLAIN) / "model.safetensors"
    damaged.write_bytes(b"\x08" + b"\0" * 7 + b"notjson!" + b"\1" * 100)

    def run(words, code):
        line = command.refused(*words.split(), code=code)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "file", "tiny"]
        return line

    return run


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("", 2, "COMMAND is missing; choose from convert, bench"),
        ("fly", 2, "unknown command 'fly'"),
        ("convert tiny --to mlx-int7", 2, "'mlx-int7'"),
        ("bench --promt 512", 2, "--promt is not understood; did you mean --prompt?"),
        ("chat -p x -n 0", 2, "edge chat: -n/--max-tokens: '0' is not"),
        ("bench tiny -ngl 99 -fa 1", 2, "-fa is not an option here: llama.cpp chooses"),
        ("bench tiny --no-warmup", 2, "the first trial"),
        ("bench tiny -o jsonl", 2, "jsonl is not written"),
        ("chat fly", 1, "there is no checkpoint 'fly'"),
        ("power --source none -- true", 1, "--source none measures nothing"),
        ("convert damaged", 1, "not safetensors"),
        ("convert tiny --out file/out", 1, "cannot be written"),
        ("bench tiny -p8 -n8 --save file/x", 1, "file/x cannot be written"),
        ("bench -d 1000 -n 100", 1, "needs 1512 positions, demo was trained for 1024"),
        ("bench -p0 -n1", 1, "nothing to measure"),
        ("bench synthetic:stable-code-3b --layers 1 --quality", 1, "random weights"),
    ],
)
def test_wrong_arguments_are_one_error_line(refused, words, code, said):
    assert said in refused(words, code)


OURS = ["mlx-fp16", "mlx-int4", "gguf-f16", "gguf-q5_k_m", "gguf-q6_k"]


def test_bench_measures_every_row_and_its_peers(demo_out, tmp_path):
    shutil.copytree(demo_out, tmp_path / "models" / "demo")
    words = ("-p64", "-n64", "-r3", *QUICK, "--peers", "-o", "json")
    done = edge(*words, cwd=tmp_path, script="bench.py")
    for place in (tmp_path, Path.home(), ROOT):
        assert str(place) not in done.stdout
    profile = json.loads(done.stdout)
    verdicts = {row["verdict"] for row in profile["rows"]}
    assert done.returncode == ("INVALID" in verdicts), done.stderr
    saved, plot = sorted((tmp_path / "profiles" / "local").iterdir())
    assert json.loads(saved.read_text()) == profile
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert (profile["model"]["name"], profile["model"]["parameters"]) == ("demo", 5_509_632)
    assert [row["artefact"] for row in profile["rows"] if row["engine"] != "mlx-lm"] == OURS
    assert [row["artefact"] for row in profile["rows"] if row["engine"] == "mlx-lm"] == OURS[:2]
    for row in profile["rows"]:
        is_steady = "varies by" not in row["reasons"][0]  # on a busy machine
        assert row["verdict"] in ("VALID", "WARN") or not is_steady, row["reasons"]
        rates = sorted(t["decode_tok_s"] for t in row["trials"] if not t["warmup"])
        assert (row["decode_tok_s"]["median"], row["decode_tok_s"]["n"]) == (rates[1], 3)
        assert row["prefill_tok_s"]["median"] > 0
        assert row["peak_memory_bytes"] > row["file_bytes"]
        assert row["power_w"] is None
        assert any("power_w" in reason for reason in row["reasons"])


def test_bench_converts_missing_artefacts_and_reports_failures(tiny, tmp_path):
    words = ("bench", tiny, "-p8", "-n8", "-r1", *QUICK, "--rows", "mlx-fp16", "gguf-f16")
    done = edge(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| Framework | Device")
    assert "only 1 trial:" in done.stdout
    weights = tmp_path / "models" / "tiny" / "mlx-fp16" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000] + b"\xff" * 1000)  # NaN
    done = edge(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert [line.split("|")[-2].strip() == "INVALID" for line in lines] == [True, False]
    assert "not finite" in done.stdout


def test_closed_pipe_prints_no_error(tiny, tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    words = ("convert", tiny, "--to", "gguf-f16", "-o", "json")
    done = edge(*words, cwd=tmp_path, stdout=write_end)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


def is_measuring(process):
    with contextlib.suppress(psutil.Error):  # a child may end meanwhile
        return any("edge.bench.worker" in w for c in process.children() for w in c.cmdline())
    return False


def test_ctrl_c_also_stops_the_worker(tiny, tmp_path):
    words = ("--rows", "mlx-fp16", "-p", "200", "-n", "200", "-r", "100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "edge", "bench", tiny, *words],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    me, workers = psutil.Process(process.pid), []
    try:
        while not is_measuring(me):
            assert process.poll() is None
        workers = me.children()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        *_, where, last = errors.splitlines()
        assert last == "edge bench: interrupted"
        assert where == "edge bench: stopped before anything was measured; no profile was saved"
        assert not psutil.wait_procs(workers, timeout=10)[1]
    finally:  # a failed test must not leave 100000 trials running
        for left in (*workers, me):
            with contextlib.suppress(psutil.Error):
                left.kill()

"""The commands as a user types them, each in a process of its own."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.tiny import PLAIN, write_checkpoint

# Neither the memory bandwidth is measured nor the logits are compared.
FAST = ("--bandwidth-gb-s", "10", "--no-check")
ROOT = Path(__file__).resolve().parents[2]


def edge(*words, cwd, script=None, **environment):
    command = [ROOT / script] if script else ["-m", "edge"]
    return subprocess.run(
        [sys.executable, *command, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment},
        timeout=300,
        check=False,
    )


def is_one_sentence(done, code):
    """An error as the rules want it: the exit code, one line on stderr, no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("usage", "   "))]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", PLAIN)


# --- modules


def test_modules_in_the_current_folder_are_not_run(tiny, tmp_path):
    """As in a folder that came with a model; neither here nor in any process that is started."""
    folder, ran = tmp_path / "cloned", tmp_path / "ran"
    folder.mkdir()
    for name in ("json", "numpy", "argparse", "llama_cpp", "mlx", "edge", "tqdm", "gguf"):
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r})\n")
    out, rows = ("--out", folder / "out"), ("mlx-fp16", "gguf-q8_0")  # one by the quantiser's child
    done = edge(tiny, "--to", *rows, *out, cwd=folder, script="convert.py")
    assert (done.returncode, ran.exists()) == (0, False), done.stderr
    words = ("-p", "8", "-n", "4", "-r", "1", "--rounds", "1", "--min-window", "0", "--peers")
    done = edge(tiny, "--rows", *rows, *out, *words, cwd=folder, script="bench.py")
    assert (done.returncode, ran.exists()) == (0, False), done.stderr


# --- convert


def test_convert_says_what_it_made_and_kept(tiny, tmp_path):
    words = ("convert", tiny, "--to", "mlx-fp16", "gguf-f16", "--out", "o")
    first = edge(*words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert [line.split(" (")[0] for line in first.stdout.splitlines()] == [
        "made o/mlx-fp16",
        "made o/gguf-f16.gguf",
    ]
    again = edge(*words, "-o", "json", cwd=tmp_path)
    assert [(a["artefact"], a["kept"]) for a in json.loads(again.stdout)] == [
        ("mlx-fp16", True),
        ("gguf-f16", True),
    ]


def test_convert_writes_into_models_by_default(tiny, tmp_path):
    assert edge("convert", tiny, "--to", "gguf-f32", cwd=tmp_path).returncode == 0
    assert (tmp_path / "models" / "tiny" / "gguf-f32.gguf").is_file()


# --- bad input, to either command


def test_an_unknown_artefact(tiny, tmp_path):
    line = is_one_sentence(edge("convert", tiny, "--to", "mlx-int7", cwd=tmp_path), 2)
    assert "'mlx-int7'" in line
    assert "mlx-int4" in line


def test_an_unknown_row(tmp_path):
    assert "'gguf-x'" in is_one_sentence(edge("bench", "--rows", "gguf-x", cwd=tmp_path), 2)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("-r", "0"), *((flag, value) for flag in ("-r", "-n") for value in ("-3", "x", "1.5"))],
)
def test_counts_that_are_none(flag, value, tmp_path):
    assert flag in is_one_sentence(edge("bench", f"{flag}={value}", cwd=tmp_path), 2)


@pytest.mark.parametrize("command", ["convert", "bench"])
def test_a_model_that_is_not_there(command, tmp_path):
    assert "'nowhere'" in is_one_sentence(edge(command, "nowhere", cwd=tmp_path), 1)


def cut(path):
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def garble(path):
    (path / "model.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"notjson!" + b"\1" * 100)


def become_a_mistral(path):
    (path / "config.json").write_text(json.dumps({**PLAIN, "model_type": "mistral"}))


def widen(path):
    (path / "config.json").write_text(json.dumps({**PLAIN, "intermediate_size": 128}))


def add_a_layer(path):
    (path / "config.json").write_text(json.dumps({**PLAIN, "num_hidden_layers": 3}))


def lose_the_tokenizer(path):
    (path / "tokenizer.json").unlink()


def lose_the_config(path):
    (path / "config.json").unlink()


@pytest.mark.parametrize("command", ["convert", "bench"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "is cut off"),
        (garble, "not safetensors"),
        (become_a_mistral, "'mistral' model"),
        (widen, "has shape [96, 64]"),
        (add_a_layer, "is missing"),
        (lose_the_config, "config.json is missing"),
        (lose_the_tokenizer, "tokenizer.json is missing"),
    ],
)
def test_a_damaged_checkpoint_leaves_nothing_behind(command, damage, words, tiny, tmp_path):
    damage(tiny)
    assert words in is_one_sentence(edge(command, tiny, cwd=tmp_path), 1)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_an_output_folder_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    line = is_one_sentence(edge("convert", tiny, "--out", "file/out", cwd=tmp_path), 1)
    assert "cannot be written" in line


def test_a_prompt_beyond_the_context(tmp_path):
    line = is_one_sentence(edge("bench", "-d", "1000", "-n", "100", cwd=tmp_path), 1)
    assert "needs 1512 positions" in line
    assert "1024" in line


def test_nothing_to_measure(tmp_path):
    assert "nothing to measure" in is_one_sentence(edge("bench", "-p0", "-n1", cwd=tmp_path), 1)


def test_a_profile_folder_that_cannot_be_made_is_found_first(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    line = is_one_sentence(edge("bench", tiny, "-p8", "-n8", "--save", "file/x", cwd=tmp_path), 1)
    assert "file/x cannot be written" in line
    assert not (tmp_path / "models").exists()


# --- bench, the whole way

QUICK = ("--rounds", "1", "--min-window", "0", *FAST)
TOP_KEYS = ["schema", "created_utc", "argv", "device", "software", "model", "method", "rows"]
ROW_KEYS = {
    *("artefact", "engine", "framework", "precision", "workload", "file_bytes", "bits_per_weight"),
    *("bytes_per_token", "decode_tok_s", "prefill_tok_s", "ttft_s", "power_w", "joules_per_token"),
    *("joules_per_token_net", "peak_memory_bytes", "bandwidth_fraction", "quality", "verdict"),
    *("reasons", "trials"),
}
OURS = ["mlx-fp16", "mlx-int4", "gguf-f16", "gguf-q5_k_m", "gguf-q6_k"]


def test_bench_measures_every_row_and_its_peers(demo_out, tmp_path):
    """Five rows and their two peers on a copy of the session's artefacts."""
    shutil.copytree(demo_out, tmp_path / "models" / "demo")
    words = ("-p64", "-n64", "-r3", *QUICK, "--peers", "-o", "json")
    done = edge(*words, cwd=tmp_path, script="bench.py")
    assert done.returncode == 0, done.stderr
    for place in (tmp_path, Path.home(), ROOT):
        assert str(place) not in done.stdout
    profile = json.loads(done.stdout)
    assert list(profile) == TOP_KEYS
    saved, plot = sorted((tmp_path / "profiles" / "local").iterdir())
    assert json.loads(saved.read_text()) == profile
    assert plot.read_bytes().startswith(b"\x89PNG")
    demo = {"name": "demo", "source": "demo", "revision": None, "parameters": 5_509_632}
    assert profile["model"] == {**demo, "synthetic": False}
    assert [row["artefact"] for row in profile["rows"] if row["engine"] != "mlx-lm"] == OURS
    assert [row["artefact"] for row in profile["rows"] if row["engine"] == "mlx-lm"] == OURS[:2]
    for row in profile["rows"]:
        assert set(row) >= ROW_KEYS
        assert row["verdict"] in ("VALID", "WARN"), row["reasons"]
        assert row["workload"] == {"prompt": 64, "generate": 64, "depth": 0, "joint": False}
        rates = sorted(t["decode_tok_s"] for t in row["trials"] if not t["warmup"])
        assert (row["decode_tok_s"]["median"], row["decode_tok_s"]["n"]) == (rates[1], 3)
        assert row["prefill_tok_s"]["median"] > 0
        assert row["peak_memory_bytes"] > row["file_bytes"]
        assert row["power_w"] is None
        assert any("power_w" in reason for reason in row["reasons"])


def test_bench_converts_what_is_missing_and_shows_what_fails(tiny, tmp_path):
    words = ("bench", tiny, "-p8", "-n8", "-r1", *QUICK, "--rows", "mlx-fp16", "gguf-f16")
    done = edge(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| Framework | Device")
    assert "only 1 trial:" in done.stdout
    weights = tmp_path / "models" / "tiny" / "mlx-fp16" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = edge(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert [line.split("|")[-2].strip() == "INVALID" for line in lines] == [True, False]
    assert "model.safetensors" in done.stdout


def test_a_reader_that_goes_away_is_no_error_text(tiny, tmp_path):
    edge("convert", tiny, "--to", "gguf-f16", cwd=tmp_path)
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "edge", "convert", str(tiny), "--to", "gguf-f16", "-o", "json"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


def is_measuring(process):
    """Whether it has a worker under way; a child may end while one looks at it."""
    with contextlib.suppress(psutil.Error):
        return any("edge.bench.worker" in w for c in process.children() for w in c.cmdline())
    return False


def test_ctrl_c_during_a_row_stops_the_worker_too(tiny, tmp_path):
    command = [sys.executable, "-m", "edge", "bench", str(tiny), "--rows", "mlx-fp16"]
    process = subprocess.Popen(
        [*command, "-p", "200", "-n", "200", "-r", "100000"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    me, workers = psutil.Process(process.pid), []
    try:
        while not is_measuring(me):
            assert process.poll() is None
        workers = me.children()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert errors.splitlines()[-1] == "edge bench: interrupted"
        assert not psutil.wait_procs(workers, timeout=10)[1]
    finally:  # a test that failed must not leave a bench of 100000 trials behind
        for left in (*workers, me):
            with contextlib.suppress(psutil.Error):
                left.kill()

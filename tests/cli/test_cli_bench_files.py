"""`edge bench` on files that are measured as they are."""

import json
import shutil

import pytest

from edge.profile.check import check
from edge.profile.profile import read
from edge.report.devices import compare_devices
from edge.report.table import profile_table
from tests.support.any_network import write_gguf, write_mlx

QUICK = ("-p", "8", "-n", "4", "-r", "1", "--min-window", "0", "--cooldown", "0")


def test_files_of_several_models_are_rows_of_one_profile(command, demo_out, tmp_path):
    tiny, unknown = write_mlx(tmp_path / "Tiny-4bit", "qwen2", 4), tmp_path / "unknown"
    shutil.copytree(tiny, unknown)
    config = json.loads((tiny / "config.json").read_text()) | {"model_type": "new"}
    (unknown / "config.json").write_text(json.dumps(config))
    other = write_gguf(tmp_path / "other.gguf", "qwen2")
    paths = (demo_out / "gguf-q6_k.gguf", tmp_path / "Tiny-4bit", other, tmp_path / "unknown")
    code, out, err = command("bench", *paths, *QUICK, "--save", tmp_path / "saved", "--quality")
    assert code == 1, err
    (saved,) = (tmp_path / "saved").glob("*.json")
    profile = read(saved)
    assert saved.stem.endswith("Z-several-models") and str(tmp_path) not in saved.read_text()
    assert check([saved]).faults == []
    found = [(row.artefact, row.engine, row.precision, row.model.name) for row in profile.rows]
    assert found == [
        ("gguf-q6_k", "llama.cpp", "Q6_K", "demo"),
        ("Tiny-4bit", "mlx-lm", "INT4", "Tiny"),
        ("other", "llama.cpp", "FP16", "other"),
        ("unknown", "mlx-lm", "INT4", "unknown"),
    ]
    *measured, unknown = profile.rows
    assert all(row.decode_tok_s and row.prefill_tok_s for row in measured)
    assert "mlx-lm cannot load unknown (ValueError: Model type new" in unknown.reasons[0]
    assert all("quality was not measured and the logits" in str(r.reasons) for r in measured)
    assert profile_table(profile).head[0] == "Artefact" and "| Tiny-4bit" in out
    of_each = [compare_devices(saved.parent, model=name).rows for name in ("tiny", "demo")]
    models = [[row["model"] for row in rows] for rows in of_each]
    assert models == [["Tiny, 0.0807 M parameters"], ["demo, 5.51 M parameters"]]


def test_the_published_file_of_a_package_is_measured(command, tmp_path, smollm2_path):
    profile = command.json("bench", smollm2_path, *QUICK, "--save", tmp_path)
    (row,) = profile["rows"]
    assert (row["precision"], "model" in row, row["verdict"]) == ("Q4_1", False, "WARN")
    assert profile["model"]["name"] == "SmolLM2-135M-Instruct"
    assert profile["model"]["parameters"] == 134515008


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["empty", "qwen2"], "empty/config.json"),
        (["qwen2", "owner/name"], "owner/name is not a GGUF file or MLX directory"),
        (["cut.gguf"], "cut.gguf is not a complete GGUF file"),
        (["qwen2", "qwen2", "--rows", "mlx-int4"], "--rows cannot be used with files"),
        (["qwen2", "--kv-bits", "8", "--peers"], "--peers, --kv-bits cannot be used"),
        (["qwen2", "-p", "300"], "qwen2 was trained for 256"),
    ],
)
def test_bad_input_is_refused_before_the_run(words, message, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_mlx(tmp_path / "qwen2", "qwen2")
    whole = write_gguf(tmp_path / "whole.gguf", "qwen2").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-100])
    assert message in command.refused("bench", *words, "--power", "none")

"""`edge convert` as a user types it: artefacts, output and exit codes."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge.convert.artefacts.manifest import read_manifest
from edge.convert.artefacts.recipes import RECIPES
from edge.formats.gguf import read_gguf
from tests.cli.test_cli import edge
from tests.support.foreign_gguf import write_tiny
from tests.support.gptq_packer import STABLELM, Settings, write_gptq
from tests.support.tiny import PLAIN, write_checkpoint


@pytest.fixture
def convert(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return SimpleNamespace(
        run=partial(command, "convert"),
        json=partial(command.json, "convert"),
        refused=partial(command.refused, "convert"),
    )


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", PLAIN).name


@pytest.fixture
def gptq(tmp_path):
    write_gptq(tmp_path / "code-GPTQ", STABLELM, Settings(4, 64))
    return "code-GPTQ"


@pytest.fixture
def foreign(tmp_path):
    """As llama.cpp's converter leaves Stable Code."""
    keys = {"stablelm.context_length": 16384}
    return write_tiny(tmp_path / "stable-code-3b.gguf", keys).name


def test_list_has_every_artefact_with_its_size(convert, gptq):
    rows = convert.json(gptq, "--list")
    assert [row["artefact"] for row in rows] == list(RECIPES)
    assert all(row["weight_bytes"] > 0 and row["bits_per_weight"] > 0 for row in rows)
    head, *lines = convert.run(gptq, "--list")[1].splitlines()
    assert head.split() == ["artefact", "bits/weight", "weights", "(MB)"]
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert [r["estimated"] for r in rows] == ["about" in line for line in lines]
    exact = [line.split()[0] for line in lines if "keeps the source's values" in line]
    assert [r["artefact"] for r in rows if r["exact"]] == exact == ["mlx-int4"]
    assert not Path("models").exists()


def test_results_go_to_stdout_and_warnings_to_stderr(foreign, tmp_path):
    """In a process of its own, so that output of libraries counts too."""
    done = edge("convert", foreign, "--to", "gguf-q8_0", "mlx-int4", cwd=tmp_path)
    assert done.returncode == 0
    lines = [line for line in done.stdout.splitlines() if not line.startswith("  ")]
    paths = [f"models/stable-code-3b/{name}" for name in ("gguf-q8_0.gguf", "mlx-int4")]
    assert [line.split(" (")[0] for line in lines] == [f"made {path}" for path in paths]
    assert all(line.startswith("edge convert: warning: ") for line in done.stderr.splitlines())
    done = edge("convert", foreign, "--to", "mlx-int4", "-o", "json", cwd=tmp_path)
    (made,) = json.loads(done.stdout)
    assert set(made) == {"artefact", "path", "kept", "file_bytes", "notes", "warnings"}
    assert made["kept"]
    assert any("rounded again" in note for note in made["notes"])
    assert any("gives no rotary base" in warning for warning in made["warnings"])


def test_quantised_source_is_kept_unless_requantised(convert, gptq):
    (made,) = convert.json(gptq, "--to", "mlx-int4")
    assert read_manifest(Path(made["path"])).exact
    (again,) = convert.json(gptq, "--to", "mlx-int4", "--requantize", "--force")
    assert any("rounded again" in note for note in again["notes"])


def test_group_size_and_gptq_calibration(convert, tmp_path):
    write_checkpoint(tmp_path / "m", {**PLAIN, "hidden_size": 128, "intermediate_size": 128})
    (made,) = convert.json("m", "--to", "mlx-int4", "--group-size", "128")
    config = json.loads((Path(made["path"]) / "config.json").read_text())
    assert config["quantization"]["group_size"] == 128
    assert "other options" in convert.refused("m", "--to", "mlx-int4", "--group-size", "32")
    (tmp_path / "text.txt").write_text("def f(x):\n    return x + 1\n" * 400)
    words = ("m", "--to", "mlx-int4", "--calibrate", "gptq", "--calibration", "text.txt")
    (made,) = convert.json(*words, "--force")
    assert read_manifest(Path(made["path"])).recipe["learned"] == "gptq"
    assert made["notes"] == ["learned with GPTQ from text.txt."]
    assert convert.json(*words)[0]["kept"] and convert.json("m", "--to", "mlx-int4")[0]["kept"]


def test_rope_base_and_context_of_a_checkpoint_are_corrected(convert, tmp_path):
    """Revision 84383c2 of stable-code-3b has the values of StableLM 3B."""
    write_checkpoint(tmp_path / "stable-code-3b", {**PLAIN, "max_position_embeddings": 4096})
    base, context = convert.run("stable-code-3b", "--to", "mlx-fp16")[2].splitlines()
    assert base.startswith("edge convert: warning: rope_theta is 10000")
    assert "--rope-theta 1000000" in base
    assert "--context 16384" in context
    right = ("--rope-theta", "1000000", "--context", "16384", "--force")
    code, _, err = convert.run("stable-code-3b", "--to", "mlx-fp16", "gguf-f16", *right)
    assert (code, err) == (0, "")
    folder = tmp_path / "models" / "stable-code-3b"
    config = json.loads((folder / "mlx-fp16" / "config.json").read_text())
    assert (config["rope_theta"], config["max_position_embeddings"]) == (1e6, 16384)
    keys = read_gguf(folder / "gguf-f16.gguf").keys
    assert (keys["stablelm.rope.freq_base"], keys["stablelm.context_length"]) == (1e6, 16384)
    code, _, err = convert.run("stable-code-3b", "--verify", folder / "mlx-fp16")
    assert (code, err) == (0, "")


def test_gguf_file_is_copied_with_corrected_metadata(convert, foreign):
    words = (foreign, "--to", "gguf-mended")
    (made,) = convert.json(*words)
    path = Path("models/stable-code-3b/gguf-mended.gguf")
    note = "rotary base 1000000, context 16384; every tensor is the source's, byte for byte."
    expected = {"artefact": "gguf-mended", "path": str(path), "kept": False, "warnings": []}
    assert made == {**expected, "file_bytes": path.stat().st_size, "notes": [note]}
    assert "--force" in convert.refused(*words)
    assert convert.run(*words, "--force")[1].startswith(f"made {path} (")
    assert convert.run(foreign, "--verify", path)[0] == 0
    assert "is made alone" in convert.refused(*words, "mlx-fp16")


def test_verify_in_text_and_json(convert, tiny):
    table = ["mlx-fp16", "mlx-int4", "gguf-f16", "gguf-q5_k_m", "gguf-q6_k"]
    assert [made["artefact"] for made in convert.json(tiny)] == table
    path = Path("models/tiny/mlx-int4")
    code, out, err = convert.run(tiny, "--verify", path)
    assert (code, err) == (0, "")
    assert out.startswith(f"{path}: mlx-int4 of tiny, ")
    assert out.endswith("\nthe artefact is correct\n")
    found = convert.json(tiny, "--verify", path)
    assert (found["problems"], found["manifest"]["artefact"]) == ([], "mlx-int4")
    assert {"name", "relative", "largest"} == found["worst"][0].keys()
    assert "its source is not available" in convert.json("--verify", path)["notes"][0]
    (path / "config.json").write_text("{}")
    code, out, _ = convert.run(tiny, "--verify", path)
    assert (code, out.splitlines()[-1]) == (1, "the artefact is wrong")
    assert f"PROBLEM: {path / 'config.json'} has changed" in out
    assert convert.json(tiny, "--verify", path, code=1)["problems"]
    assert "no manifest" in convert.refused("--verify", tiny)


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ("demo --revision main", 1, "--revision is for models on the hub"),
        ("demo --layers 2", 1, "--layers is for synthetic models"),
        ("demo --requantise", 1, "--requantise is for quantised sources"),
        ("demo --to mlx-fp16 --group-size 64", 1, "--group-size applies to none"),
        ("demo --to gguf-q4_0 --imatrix x", 1, "x is missing"),
        ("demo --to mlx-int3 --calibrate gptq", 1, "gptq cannot make 3 bits"),
        ("demo --to mlx-int4 --calibration /dev/null", 1, "--calibration needs --calibrate"),
        ("demo --to mlx-int4 --calibrate gptq --calibration x", 1, "x is missing"),
        ("demo --list --to mlx-int4", 1, "--to has no effect when listing"),
        ("demo --verify /dev/null --out y", 1, "--out has no effect when verifying"),
        ("demo --to gguf-mended --imatrix /dev/null", 1, "--imatrix has no effect when fixing"),
        ("demo --rope-theta nan", 2, "--rope-theta: 'nan' is not a number"),
        ("demo --layers 0", 2, "--layers: '0' is not a whole number"),
        ("--to mlx-int4 demo", 2, "MODEL goes before the artefacts"),
        ("--list", 2, "MODEL is missing"),
    ],
)
def test_options_without_effect_and_wrong_values_are_refused(convert, words, code, expected):
    assert expected in convert.refused(*words.split(), code=code)
    assert [path.name for path in Path().rglob("*.gguf")] == []

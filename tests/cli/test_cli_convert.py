"""`edge convert` as a user types it: what it prints where, and how it ends."""

import json
import subprocess
from pathlib import Path

import pytest

from edge.cli.main import main
from edge.convert.artefacts.manifest import read_manifest
from edge.convert.artefacts.recipes import RECIPES
from edge.formats.gguf import read_gguf
from tests.cli.test_cli import edge
from tests.support.foreign_gguf import write_tiny
from tests.support.gptq_packer import STABLELM, Settings, write_gptq
from tests.support.tiny import PLAIN, write_checkpoint


class Typed:
    """Runs the command in this process."""

    def __init__(self, capsys):
        self._capsys = capsys

    def __call__(self, *words):
        self._capsys.readouterr()
        try:
            code = main(["convert", *map(str, words)])
        except SystemExit as stop:  # argparse
            code = stop.code
        out, err = self._capsys.readouterr()
        return subprocess.CompletedProcess(words, code, out, err)

    def json(self, *words):
        done = self(*words, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout, parse_constant=pytest.fail)

    def sentence(self, *words, code=1):
        """The only line on stderr beside the usage; the exit code is right and stdout empty."""
        done = self(*words)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        (line,) = (x for x in done.stderr.splitlines() if not x.startswith(("usage", "   ")))
        return line


@pytest.fixture
def typed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Typed(capsys)


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


def test_every_artefact_is_listed_with_its_size(typed, gptq):
    rows = typed.json(gptq, "--list")
    assert [row["artefact"] for row in rows] == list(RECIPES)
    assert all(row["weight_bytes"] > 0 and row["bits_per_weight"] > 0 for row in rows)
    head, *lines = typed(gptq, "--list").stdout.splitlines()
    assert head.split() == ["artefact", "bits/weight", "size", "(MB)"]
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert [r["estimated"] for r in rows] == ["about" in line for line in lines]
    exact = [line.split()[0] for line in lines if "keeps the source's own values" in line]
    assert [r["artefact"] for r in rows if r["exact"]] == exact == ["mlx-int4"]
    assert not Path("models").exists()


def test_table_11_is_the_default(typed, tiny):
    table = ["mlx-fp16", "mlx-int4", "gguf-f16", "gguf-q5_k_m", "gguf-q6_k"]
    assert [made["artefact"] for made in typed.json(tiny)] == table


def test_results_and_warnings_go_to_different_streams(foreign, tmp_path):
    """In a process of its own: whatever libraries print counts too."""
    done = edge("convert", foreign, "--to", "gguf-q8_0", "mlx-int4", cwd=tmp_path)
    assert done.returncode == 0
    lines = [line for line in done.stdout.splitlines() if not line.startswith("  ")]
    paths = [f"models/stable-code-3b/{name}" for name in ("gguf-q8_0.gguf", "mlx-int4")]
    assert [line.split(" (")[0] for line in lines] == [f"made {path}" for path in paths]
    size = (tmp_path / paths[0]).stat().st_size
    assert lines[0].endswith(f"({size / 1e6:.1f} MB)")
    assert all(line.startswith("edge convert: warning: ") for line in done.stderr.splitlines())
    done = edge("convert", foreign, "--to", "mlx-int4", "-o", "json", cwd=tmp_path)
    (made,) = json.loads(done.stdout)
    assert set(made) == {"artefact", "path", "kept", "file_bytes", "notes", "warnings"}
    assert made["kept"]
    assert any("rounded again" in note for note in made["notes"])
    assert any("gives no rotary base" in warning for warning in made["warnings"])


def test_a_quantised_source_is_kept_unless_requantised(typed, gptq):
    (made,) = typed.json(gptq, "--to", "mlx-int4")
    assert read_manifest(Path(made["path"])).exact
    line = typed.sentence(gptq, "--to", "mlx-int4", "--requantise")
    assert "made with other options" in line and "--force" in line
    (again,) = typed.json(gptq, "--to", "mlx-int4", "--requantize", "--force")
    assert any("rounded again" in note for note in again["notes"])


def test_group_size_and_learned_quantisation(typed, tmp_path):
    write_checkpoint(tmp_path / "m", {**PLAIN, "hidden_size": 128, "intermediate_size": 128})
    (made,) = typed.json("m", "--to", "mlx-int4", "--group-size", "128")
    config = json.loads((Path(made["path"]) / "config.json").read_text())
    assert config["quantization"]["group_size"] == 128
    assert "other options" in typed.sentence("m", "--to", "mlx-int4", "--group-size", "32")
    (tmp_path / "text.txt").write_text("def f(x):\n    return x + 1\n" * 400)
    words = ("m", "--to", "mlx-int4", "--calibrate", "gptq", "--calibration", "text.txt")
    (made,) = typed.json(*words, "--force")
    assert read_manifest(Path(made["path"])).recipe["learned"] == "gptq"
    assert made["notes"] == ["learned with GPTQ from text.txt."]
    assert typed.json(*words)[0]["kept"] and typed.json("m", "--to", "mlx-int4")[0]["kept"]


def test_a_checkpoint_with_the_wrong_base_and_context(typed, tmp_path):
    """Revision 84383c2 of stable-code-3b has the values of StableLM 3B."""
    write_checkpoint(tmp_path / "stable-code-3b", {**PLAIN, "max_position_embeddings": 4096})
    base, context = typed("stable-code-3b", "--to", "mlx-fp16").stderr.splitlines()
    assert base.startswith("edge convert: warning: rope_theta is 10000")
    assert "--rope-theta 1000000" in base
    assert "--context 16384" in context
    right = ("--rope-theta", "1000000", "--context", "16384", "--force")
    done = typed("stable-code-3b", "--to", "mlx-fp16", "gguf-f16", *right)
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "models" / "stable-code-3b"
    config = json.loads((folder / "mlx-fp16" / "config.json").read_text())
    assert (config["rope_theta"], config["max_position_embeddings"]) == (1e6, 16384)
    keys = read_gguf(folder / "gguf-f16.gguf").keys
    assert (keys["stablelm.rope.freq_base"], keys["stablelm.context_length"]) == (1e6, 16384)
    done = typed("stable-code-3b", "--verify", folder / "mlx-fp16")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fixed_copy(typed, foreign):
    words = (foreign, "--to", "gguf-mended")
    (made,) = typed.json(*words)
    path = Path("models/stable-code-3b/gguf-mended.gguf")
    note = "rotary base 1000000, context 16384; every tensor is the source's, byte for byte."
    expected = {"artefact": "gguf-mended", "path": str(path), "kept": False, "warnings": []}
    assert made == {**expected, "file_bytes": path.stat().st_size, "notes": [note]}
    assert "--force" in typed.sentence(*words)
    assert typed(*words, "--force").stdout.startswith(f"made {path} (")
    assert "as it should be" in typed(foreign, "--verify", path).stdout
    assert "a second call" in typed.sentence(*words, "mlx-fp16")


def test_verify_in_text_json_and_exit_codes(typed, tiny):
    typed(tiny, "--to", "mlx-int4")
    path = Path("models/tiny/mlx-int4")
    done = typed(tiny, "--verify", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith(f"{path}: mlx-int4 of tiny, ")
    assert done.stdout.splitlines()[-1] == "as it should be"
    found = typed.json(tiny, "--verify", path)
    assert (found["problems"], found["manifest"]["artefact"]) == ([], "mlx-int4")
    assert {"name", "relative", "largest"} == found["worst"][0].keys()
    assert "its source is not here" in typed.json("--verify", path)["remarks"][0]
    (path / "config.json").write_text("{}")
    done = typed(tiny, "--verify", path)
    assert done.returncode == 1
    assert f"PROBLEM: {path / 'config.json'} has changed" in done.stdout
    assert done.stdout.splitlines()[-1] == "not what it should be"
    done = typed(tiny, "--verify", path, "-o", "json")
    assert done.returncode == 1 and json.loads(done.stdout)["problems"]
    assert "is missing" in typed.sentence("--verify", "nothing")
    assert "no manifest" in typed.sentence("--verify", tiny)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("demo --revision main", "--revision is for models on the hub"),
        ("demo --layers 2", "--layers is for synthetic models"),
        ("demo --requantise", "--requantise is for quantised sources, and demo is none"),
        ("demo --to mlx-fp16 --group-size 64", "--group-size bears on none"),
        ("demo --to gguf-q4_0 --imatrix x", "x is missing; check the path"),
        ("demo --to gguf-f16 --calibrate gptq", "--calibrate bears on none"),
        ("demo --to mlx-int3 --calibrate gptq", "gptq cannot make 3 bits; choose from 2, 4, 8"),
        ("demo --to mlx-int4 --calibration x", "--calibration needs --calibrate"),
        ("demo --to mlx-int4 --calibrate gptq --calibration x", "x is missing; check the path"),
        ("demo --list --to mlx-int4", "--to has no effect when listing"),
        ("demo --verify x --out y", "--out has no effect when verifying"),
        ("x.gguf --to gguf-mended --imatrix y", "--imatrix has no effect when fixing"),
    ],
)
def test_options_that_cannot_be_used(typed, tiny, words, expected):
    assert expected in typed.sentence(*words.split())
    assert [path.name for path in Path().rglob("*.gguf")] == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("demo --group-size 48", "--group-size: invalid choice: 48"),
        ("demo --calibrate awq", "--calibrate: invalid choice: 'awq'"),
        ("demo --rope-theta nan", "--rope-theta: 'nan' is not a number"),
        ("demo --layers 0", "--layers: '0' is not a whole number"),
        ("demo --list --verify x", "--verify: not allowed with argument --list"),
        ("--to mlx-int4 demo", "MODEL goes before the artefacts"),
        ("--list", "MODEL is missing"),
    ],
)
def test_wrong_arguments_end_with_2(typed, words, expected):
    assert expected in typed.sentence(*words.split(), code=2)

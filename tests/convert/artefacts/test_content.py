"""Artefacts that are not what their name says."""

import json
import shutil
from dataclasses import replace

import pytest

from edge.bench.files import open_files
from edge.convert.artefacts.content import check_name, gguf_precision
from edge.convert.artefacts.manifest import MLX_FILE, read_manifest, write_manifest
from edge.convert.artefacts.recipes import RECIPES
from edge.errors import EdgeError
from edge.formats.gguf import read_gguf
from edge.llama_cpp.quantise import quantise
from tests.support.conversions import check, make
from tests.support.tiny import PLAIN, write_checkpoint

WIDE = {**PLAIN, "hidden_size": 256, "intermediate_size": 512}
MADE = tuple(RECIPES)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", WIDE)


@pytest.fixture(scope="module")
def made(tiny):
    """Artefacts by name; not to be changed."""
    return {a.recipe.name: a.path for a in make(tiny, tiny.parent / "out", *MADE)}


def copy(artefact, path):
    """A copy under another path, of a GGUF file with its ending."""
    path.parent.mkdir(exist_ok=True)
    return (shutil.copytree if artefact.is_dir() else shutil.copyfile)(artefact, path)


def test_every_artefact_is_what_its_name_says(made, tiny, tmp_path):
    for name, path in made.items():
        check_name(path)
        free = copy(path, tmp_path / (f"my-{name}" if path.is_dir() else f"my-{name}.gguf"))
        assert open_files([str(free)])[0].recipe.precision == RECIPES[name].precision, name
    assert all(a.kept for a in make(tiny, tiny.parent / "out", *MADE))


def without_manifest(path):
    (path / MLX_FILE).unlink()


def with_manifest_of(name):
    def change(path):
        write_manifest(path, replace(read_manifest(path), artefact=name))

    return change


def with_groups(group_size):
    def change(path):
        write_manifest(path, replace(read_manifest(path), recipe={"group_size": group_size}))

    return change


def with_config(bits, group_size):
    def change(path):
        config = json.loads((path / "config.json").read_text())
        config["quantization"] = {"bits": bits, "group_size": group_size}
        (path / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    ("held", "name", "change", "words"),
    [
        ("mlx-int2", "mlx-int4", None, "its manifest says mlx-int2"),
        ("mlx-mixed_4_6", "mlx-int4", None, "its manifest says mlx-mixed_4_6"),
        ("mlx-int2", "mlx-int4", without_manifest, "its tensors are INT2"),
        ("mlx-mixed_4_6", "mlx-int4", without_manifest, "its tensors are MIXED_4_6"),
        ("mlx-int2", "mlx-int4", with_manifest_of("mlx-int4"), "its tensors are INT2"),
        ("mlx-bf16", "mlx-fp16", with_manifest_of("mlx-fp16"), "its tensors are BF16"),
        ("mlx-int4", "mlx-int8", with_manifest_of("mlx-int8"), "its tensors are INT4"),
        ("mlx-int4", "mlx-int4", with_groups(32), "has not the groups of 32"),
        ("mlx-int4", "mlx-int4", with_groups([64]), "has not the groups of"),
        ("mlx-int4", "mlx-int4", with_config(8, 64), "does not have the bits"),
        ("gguf-q4_0", "gguf-f16", None, "its manifest says gguf-q4_0"),
        ("gguf-q4_0", "gguf-f16", with_manifest_of("gguf-f16"), "its tensors are Q4_0"),
        ("gguf-q5_k_s", "gguf-q5_k_m", with_manifest_of("gguf-q5_k_m"), "tensors are Q5_K_S"),
    ],
)  # fmt: skip
def test_wrong_names_are_refused_and_made_again(made, tiny, tmp_path, held, name, change, words):
    path = copy(made[held], RECIPES[name].path_in(tmp_path / "out"))
    if change:
        change(path)
    with pytest.raises(EdgeError, match=words):
        check_name(path)
    with pytest.raises(EdgeError, match=words):
        open_files([str(path)])
    if read_manifest(path) is None:
        with pytest.raises(EdgeError, match="not a complete artefact"):
            make(tiny, path.parent, name)
        return
    assert any(words in problem for problem in check(path, tiny).problems)
    (again,) = make(tiny, path.parent, name)
    assert not again.kept
    assert check(path, tiny).problems == ()


def test_a_wrong_manifest_does_not_label_a_free_name(made, tmp_path):
    """llama-quantize copies the manifest of the file that it reads."""
    target = tmp_path / "mine.gguf"
    quantise(made["gguf-f16"], target, RECIPES["gguf-q4_0"].file_type, lambda _: None)
    assert open_files([str(target)])[0].recipe.precision == "Q4_0"
    folder = copy(made["mlx-int2"], tmp_path / "mine")
    with_manifest_of("mlx-int4")(folder)
    assert open_files([str(folder)])[0].recipe.precision == "INT2"


def test_a_wrong_file_type_does_not_label_a_gguf_file(made):
    file = read_gguf(made["gguf-q8_0"])
    for name, expected in (("gguf-q4_k_m", "Q8_0"), ("gguf-f16", "Q8_0"), ("gguf-q8_0", "Q8_0")):
        keys = {**file.keys, "general.file_type": RECIPES[name].file_type}
        assert gguf_precision(replace(file, keys=keys)) == expected


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damaged_artefacts_are_not_kept(made, tiny, tmp_path, damage):
    path = copy(made["mlx-int4"], tmp_path / "out" / "mlx-int4")
    data = (path / damage).read_bytes()
    (path / damage).write_bytes(data[: len(data) // 3])
    assert not make(tiny, path.parent, "mlx-int4")[0].kept
    assert (path / damage).read_bytes() == data

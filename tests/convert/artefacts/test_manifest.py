"""Manifests: their contents, digests, older and damaged ones."""

import dataclasses
import hashlib
import json
import shutil

import pytest

import edge
from edge.convert.artefacts.manifest import (
    BLANK,
    GGUF_KEY,
    MLX_FILE,
    TOOLS,
    file_sha256,
    gguf_sha256,
    read_manifest,
    write_manifest,
)
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.targets import tensor_bytes
from edge.errors import EdgeError
from tests.support.conversions import make
from tests.support.tiny import CONFIGS, write_checkpoint

MADE = ("mlx-fp16", "mlx-int4", "gguf-f16", "gguf-q8_0")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = write_checkpoint(tmp_path_factory.mktemp("m") / "tiny", CONFIGS["stable-code"])
    (path / "generation_config.json").write_text("{}")
    return path


@pytest.fixture(scope="module")
def made(tiny):
    """Artefacts by name; not to be changed."""
    return {a.recipe.name: a.path for a in make(tiny, tiny.parent / "out", *MADE)}


@pytest.mark.parametrize("name", MADE)
def test_every_kind_of_artefact_records_its_source_and_files(made, tiny, name):
    path, checkpoint, recipe = made[name], open_checkpoint(str(tiny)), RECIPES[name]
    found = read_manifest(path)
    assert (found.artefact, found.exact) == (name, False)
    assert (found.source, found.revision, found.synthetic) == ("tiny", None, False)
    assert found.fingerprint == checkpoint.fingerprint
    assert (found.tools.keys(), found.tools["edge"]) == ({"edge", *TOOLS}, edge.__version__)
    assert found.bits_per_weight == 8 * tensor_bytes(path) / checkpoint.parameters
    assert found.recipe.items() >= {"bits": recipe.bits, "file_type": recipe.file_type}.items()
    assert found.source_sha256 == {p.name: file_sha256(p) for p in tiny.iterdir()}
    if path.is_dir():
        files = [p for p in path.iterdir() if p.name != MLX_FILE]
        assert found.output_sha256 == {p.name: file_sha256(p) for p in files}
    else:
        assert found.output_sha256 == {path.name: gguf_sha256(path)}
        assert path.read_bytes().count(GGUF_KEY.encode()) == 1
    assert str(tiny.parent) not in found.to_json()  # nothing of this machine


@pytest.fixture
def example(made):
    return dataclasses.replace(read_manifest(made["mlx-int4"]), notes=("fine.", "Größe"))


def test_a_gguf_digest_leaves_the_manifest_out(made, example, tmp_path):
    path = shutil.copyfile(made["gguf-f16"], tmp_path / "gguf-f16.gguf")
    digest, size = gguf_sha256(path), path.stat().st_size
    write_manifest(path, dataclasses.replace(example, notes=("x" * 9000,)))
    assert gguf_sha256(path) == digest
    write_manifest(path, example)  # shorter: nothing of the longer one is left
    assert read_manifest(path) == example
    assert path.stat().st_size == size
    data = bytearray(path.read_bytes())
    begin = data.index(b"{", data.index(GGUF_KEY.encode()))
    data[begin : begin + len(BLANK)] = BLANK.encode()
    assert hashlib.sha256(data).hexdigest() == digest
    for outside in (0, begin + len(BLANK), size - 1):
        path.write_bytes(data[:outside] + bytes([data[outside] ^ 1]) + data[outside + 1 :])
        assert gguf_sha256(path) != digest
    before = path.read_bytes()
    files = {f"model-{i:05d}.safetensors": "0" * 64 for i in range(400)}
    with pytest.raises(EdgeError, match=r"the manifest takes \d+ bytes.*space for 16384"):
        write_manifest(path, dataclasses.replace(example, source_sha256=files))
    assert path.read_bytes() == before


def test_older_manifests_are_read(example, tmp_path):
    """They had a digest of their own, and at first neither notes nor tools."""
    write_manifest(tmp_path, example)
    assert read_manifest(tmp_path) == example
    fields = {k: v for k, v in json.loads(example.to_json()).items() if k not in ("notes", "tools")}
    (tmp_path / MLX_FILE).write_text(json.dumps({**fields, "sha256": "0" * 64}))
    assert read_manifest(tmp_path) == dataclasses.replace(example, notes=(), tools={})


def test_files_without_a_valid_manifest(made, example, tmp_path):
    text = example.to_json()
    broken = ["", "[]", "[" * 100_000, '{"artefact": "mlx-int4"}', text + "{}"]
    broken += [text.replace(*pair) for pair in (("false", "NaN"), ('"tiny"', '"\\ud800"'))]
    broken += [json.dumps({**json.loads(text), key: [[1]]}) for key in json.loads(text)]
    for names in (["../x"], ["a/b"], [".."], [""], ["a\n"], map(str, range(20_000))):
        files = dict.fromkeys(names, "0" * 64)
        broken.append(json.dumps({**json.loads(text), "output_sha256": files}))
    for text in broken:
        (tmp_path / MLX_FILE).write_text(text)
        assert read_manifest(tmp_path) is None, text
    (tmp_path / "folder" / MLX_FILE).mkdir(parents=True)
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    foreign = tmp_path / "foreign.gguf"
    renamed = made["gguf-f16"].read_bytes().replace(b"edge.manifest", b"edge.manifesT", 1)
    foreign.write_bytes(renamed)
    for name in ("folder", "cut.gguf", "nowhere", "foreign.gguf"):
        assert read_manifest(tmp_path / name) is None
    with pytest.raises(EdgeError, match="has no edge manifest"):
        gguf_sha256(foreign)

"""Every artefact says what it was made of and by what, and nobody can change that unseen."""

import dataclasses
import hashlib
import json
import re
import shutil

import pytest

import edge
from edge.convert.artefacts.manifest import (
    GGUF_KEY,
    GGUF_ROOM_BYTES,
    MLX_FILE,
    TOOLS,
    Manifest,
    blank_manifest,
    file_sha256,
    gguf_sha256,
    read_manifest,
    tool_versions,
    write_manifest,
)
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.artefacts.sizes import tensor_bytes
from edge.convert.checkpoint import Corrections, open_checkpoint
from edge.convert.convert import convert
from edge.convert.sources.published import SHAPES
from edge.errors import EdgeError
from edge.formats.gguf import read_gguf
from tests.support.tiny import CONFIGS, write_checkpoint

SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MADE = ("mlx-fp16", "mlx-int4", "gguf-f16", "gguf-q8_0")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = write_checkpoint(tmp_path_factory.mktemp("m") / "tiny", CONFIGS["stable-code"])
    (path / "generation_config.json").write_text("{}")
    return path


@pytest.fixture(scope="module")
def made(tiny):
    """Artefacts by name; not to be changed."""
    recipes = [RECIPES[name] for name in MADE]
    done = convert(open_checkpoint(str(tiny)), recipes, tiny.parent / "out", lambda *_: None)
    return {artefact.recipe.name: artefact.path for artefact in done}


def example(**changes):
    manifest = Manifest(
        artefact="mlx-int4",
        source="tiny",
        revision=None,
        synthetic=False,
        fingerprint="f" * 64,
        corrections={"layers": None, "rope_theta": 1e6, "context": None},
        recipe={"bits": 4},
        exact=False,
        bits_per_weight=4.5,
        source_sha256={"a": "1"},
        output_sha256={"b": "2"},
        tools={"edge": "0"},
        notes=("fine.", "Größe"),
    )
    return dataclasses.replace(manifest, **changes)


def written(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / MLX_FILE).write_text(text)
    return read_manifest(folder)


def signed(fields):
    """As a hostile hand would sign it."""
    fields = {k: v for k, v in fields.items() if k != "sha256"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return json.dumps({**fields, "sha256": digest})


# --- what it says


@pytest.mark.parametrize("name", MADE)
def test_every_artefact_says_what_it_was_made_of_and_by_what(made, tiny, name):
    path, checkpoint = made[name], open_checkpoint(str(tiny))
    found = read_manifest(path)
    assert found.artefact == name
    assert (found.source, found.revision, found.synthetic) == ("tiny", None, False)
    assert found.fingerprint == checkpoint.fingerprint
    assert found.tools == tool_versions()
    assert found.tools["edge"] == edge.__version__
    assert {"mlx", "mlx-lm", "gguf", "llama-cpp-python"} <= found.tools.keys()
    assert found.bits_per_weight == 8 * tensor_bytes(path) / checkpoint.parameters
    assert found.corrections == dataclasses.asdict(Corrections())
    assert not found.exact
    recipe = RECIPES[name]
    assert found.recipe["bits"] == recipe.bits
    assert found.recipe["group_size"] == recipe.group_size
    assert found.recipe["file_type"] == recipe.file_type


@pytest.mark.parametrize("name", MADE)
def test_every_source_file_and_every_output_has_its_digest(made, tiny, name):
    found = read_manifest(made[name])
    assert found.source_sha256 == {p.name: file_sha256(p) for p in tiny.iterdir()}
    if made[name].is_dir():
        files = [p for p in made[name].iterdir() if p.name != MLX_FILE]
        assert found.output_sha256 == {p.name: file_sha256(p) for p in files}
    else:
        assert found.output_sha256 == {made[name].name: gguf_sha256(made[name])}


def test_a_quantised_files_manifest_is_its_own(made):
    own, other = (read_manifest(made[name]) for name in ("gguf-q8_0", "gguf-f16"))
    assert own.output_sha256 != other.output_sha256
    assert own.recipe != other.recipe
    assert own.bits_per_weight < other.bits_per_weight
    assert made["gguf-q8_0"].read_bytes().count(GGUF_KEY.encode()) == 1


def test_nothing_of_this_machine_is_in_it(made, tiny):
    for path in made.values():
        text = read_manifest(path).to_json()
        assert str(tiny.parent) not in text
        assert str(tiny.parent.parent.name) not in text


def test_random_weights_are_labelled_and_stay_so(tmp_path, monkeypatch):
    small = dataclasses.replace(SHAPES["stable-code-3b"], **SMALL)
    monkeypatch.setitem(SHAPES, "small", small)
    checkpoint = open_checkpoint("synthetic:small", corrections=Corrections(layers=1))
    recipes = [RECIPES["mlx-int4"], RECIPES["gguf-q4_0"]]
    for artefact in convert(checkpoint, recipes, tmp_path / "out", lambda *_: None):
        found = read_manifest(artefact.path)
        assert found.synthetic
        assert found.source == "synthetic:small"
        assert found.corrections["layers"] == 1
        assert found.source_sha256 == {}
        again = open_checkpoint(str(artefact.path))
        out = tmp_path / artefact.recipe.name
        (second,) = convert(again, [RECIPES["mlx-int8"]], out, lambda *_: None)
        assert read_manifest(second.path).synthetic


# --- the file's digest


def test_a_gguf_files_digest_leaves_its_manifest_out(made, tmp_path):
    path = tmp_path / "gguf-f16.gguf"
    shutil.copyfile(made["gguf-f16"], path)
    digest = gguf_sha256(path)
    size = path.stat().st_size
    write_manifest(path, example(notes=("x" * 9000,)))
    assert gguf_sha256(path) == digest
    write_manifest(path, example())  # shorter: nothing of the longer one is left
    assert read_manifest(path) == example()
    assert path.stat().st_size == size
    begin, end = read_gguf(path).key_spans[GGUF_KEY]
    data = bytearray(path.read_bytes())
    data[end - GGUF_ROOM_BYTES : end] = blank_manifest().encode()
    assert hashlib.sha256(data).hexdigest() == digest
    for outside in (begin, end - GGUF_ROOM_BYTES - 1, end, size - 1):
        path.write_bytes(data[:outside] + bytes([data[outside] ^ 1]) + data[outside + 1 :])
        if outside not in (begin, end - GGUF_ROOM_BYTES - 1):  # else the room is not found
            assert gguf_sha256(path) != digest


def test_the_digest_is_the_same_whatever_is_read_at_once(made, monkeypatch):
    digest = gguf_sha256(made["gguf-f16"])
    head = read_gguf(made["gguf-f16"]).data_begin
    for read_bytes in (head + 1, head + 7000):
        monkeypatch.setattr("edge.convert.artefacts.manifest.READ_BYTES", read_bytes)
        assert gguf_sha256(made["gguf-f16"]) == digest


def test_a_manifest_without_room_is_a_sentence(made, tmp_path):
    path = tmp_path / "x.gguf"
    shutil.copyfile(made["gguf-f16"], path)
    before = path.read_bytes()
    files = {f"model-{i:05d}.safetensors": "0" * 64 for i in range(400)}
    with pytest.raises(EdgeError, match=r"the manifest takes \d+ bytes.*room for 16384"):
        write_manifest(path, example(source_sha256=files))
    assert path.read_bytes() == before


# --- reading it


def test_a_manifest_comes_back_as_it_was(tmp_path):
    assert written(tmp_path / "a", example().to_json()) == example()
    folder = tmp_path / "b"
    folder.mkdir()
    write_manifest(folder, example(revision="abc", exact=True))
    assert read_manifest(folder) == example(revision="abc", exact=True)


def test_an_older_release_s_record_is_still_read(tmp_path):
    """Its digest is of the fields that it had."""
    fields = json.loads(example().to_json())
    del fields["notes"], fields["tools"]
    assert written(tmp_path / "a", signed(fields)) == example(notes=(), tools={})


def test_any_other_letter_is_noticed(tmp_path):
    text = example().to_json()
    for at in range(len(text)):
        for mask in (1, 2, 4, 16):
            changed = text[:at] + chr(ord(text[at]) ^ mask) + text[at + 1 :]
            found = written(tmp_path / "a", changed)
            # Blanks between the fields may differ: a space for a line's end or the reverse.
            assert found is None or text[at].isspace(), changed


TEXT, MAPPING = ("artefact", "source", "fingerprint"), ("corrections", "recipe")
NAMES = ("source_sha256", "output_sha256", "tools")


def is_fine(key, value):
    """Whether the field may have the value."""
    return (
        (key in TEXT and isinstance(value, str))
        or (key in MAPPING and isinstance(value, dict))
        or (key in NAMES and value == {})
        or (key == "revision" and (value is None or isinstance(value, str)))
        or (key == "notes" and value == [])
        or (key == "bits_per_weight" and isinstance(value, float))
        or (key in ("synthetic", "exact") and isinstance(value, bool))
    )


def variations():
    """(fields, whether they are a manifest)."""
    fields = json.loads(example().to_json())
    del fields["sha256"]
    values = [None, 1, 1.5, "text", [], [1], {}, {"a": 1}, {"a": None}, True]
    cases = [pytest.param({**fields, "more": 1}, False, id="unknown")]
    for key in fields:
        short = {k: v for k, v in fields.items() if k != key}
        cases.append(pytest.param(short, key in ("tools", "notes"), id=f"no-{key}"))
        cases += [
            pytest.param({**fields, key: value}, is_fine(key, value), id=f"{key}={value!r}")
            for value in values
        ]
    return cases


@pytest.mark.parametrize(("fields", "fine"), variations())
def test_fields_of_other_types_are_no_manifest(tmp_path, fields, fine):
    assert (written(tmp_path / "a", signed(fields)) is not None) == fine


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "3", '"text"', "{}", '{"sha256": 1}', "[" * 100_000),
        example().to_json()[:-3],
        example().to_json() + "{}",
        re.sub(r"4\.5", "NaN", example().to_json()),
        re.sub(r"4\.5", "1e999", example().to_json()),
        re.sub('"tiny"', '"\\\\ud800"', example().to_json()),
    ],
)
def test_what_is_no_json_of_ours_is_no_manifest(tmp_path, text):
    assert written(tmp_path / "a", text) is None


def test_a_manifest_that_cannot_be_read_is_none(tmp_path):
    (tmp_path / "a" / MLX_FILE).mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / MLX_FILE).write_bytes(b"\xff\xfe{}")
    (tmp_path / "c.gguf").write_bytes(b"GGUF")
    (tmp_path / "d").write_bytes(b"")
    for name in ("a", "b", "c.gguf", "d", "nowhere"):
        assert read_manifest(tmp_path / name) is None


def test_a_foreign_gguf_file_has_none(made, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(made["gguf-f16"].read_bytes().replace(b"edge.manifest", b"edge.manifesT", 1))
    assert read_manifest(path) is None
    with pytest.raises(EdgeError, match="has no edge manifest"):
        gguf_sha256(path)


def test_the_tools_are_the_packages_that_convert():
    assert tool_versions().keys() == {"edge", *TOOLS}
    assert all(re.match(r"\d+\.", number) for number in tool_versions().values())

"""Damage to a finished artefact is found and named."""

import os
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from edge.convert.artefacts.manifest import (
    MLX_FILE,
    Corrections,
    file_sha256,
    gguf_sha256,
    read_manifest,
    write_manifest,
)
from edge.convert.checkpoint import open_checkpoint
from edge.convert.verify import PLACES, ROWS_PER_PLACE, WORST, find_origin, tensor_errors, verify
from edge.errors import EdgeError
from edge.formats.gguf import read_gguf
from edge.formats.safetensors import read_header
from tests.support.alarm import alarm
from tests.support.conversions import check, make
from tests.support.gptq_packer import STABLELM, Settings, write_gptq
from tests.support.tiny import PLAIN, write_checkpoint

MADE = ("mlx-fp16", "mlx-bf16", "mlx-int4", "mlx-int2", "mlx-mixed_2_6", "gguf-f32", "gguf-f16",
        "gguf-bf16", "gguf-q4_k_m", "gguf-q2_k")  # fmt: skip
# Float32, rows that divide into every block, and a down_proj that MLX's groups leave in float.
RAW = {**PLAIN, "hidden_size": 256, "intermediate_size": 288, "use_qkv_bias": True}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", RAW)


@pytest.fixture(scope="module")
def made(tiny):
    """Artefacts of the tiny checkpoint by name; not to be changed."""
    return {a.recipe.name: a.path for a in make(tiny, tiny.parent / "out", *MADE)}


@pytest.fixture(scope="module")
def gptq(tmp_path_factory):
    """A GPTQ checkpoint with act-order and its exact MLX artefact."""
    path = tmp_path_factory.mktemp("gptq")
    write_gptq(path / "source", STABLELM, Settings())
    return path / "source", make(path / "source", path / "out", "mlx-int4")[0].path


def copy_of(artefact, folder):
    folder.mkdir(exist_ok=True)
    copy = shutil.copytree if artefact.is_dir() else shutil.copyfile
    return copy(artefact, folder / artefact.name)


def sign_again(artefact, **changes):
    """Renew the digests of a changed artefact."""
    digests = (
        {artefact.name: gguf_sha256(artefact)}
        if artefact.is_file()
        else {f.name: file_sha256(f) for f in artefact.iterdir() if f.name != MLX_FILE}
    )
    write_manifest(artefact, replace(read_manifest(artefact), output_sha256=digests, **changes))


def places(artefact):
    """File, begin and end of every stored tensor's data, by name."""
    if not artefact.is_dir():
        tensors = read_gguf(artefact).tensors
        return {t.name: (artefact, t.begin, t.begin + t.data_bytes) for t in tensors}
    tensors = read_header(artefact / "model.safetensors")
    return {name: (t.path, t.begin, t.begin + t.data_bytes) for name, t in tensors.items()}


def rewrite(artefact, name, change, dtype="u1"):
    """Change a tensor's numbers in place, and sign again."""
    file, begin, end = places(artefact)[name]
    numbers = np.memmap(file, dtype, "r+", begin, (end - begin) // np.dtype(dtype).itemsize)
    change(numbers)
    numbers.flush()
    sign_again(artefact)


def swap(artefact, first, second):
    """Exchange all parts of two tensors, and sign again."""
    for name, (file, begin, end) in places(artefact).items():
        if name.startswith(f"{first}."):
            parts = (begin, places(artefact)[name.replace(first, second)][1])
            a, b = (np.memmap(file, "u1", "r+", part, end - begin) for part in parts)
            a[:], b[:] = b.copy(), a.copy()
    sign_again(artefact)


def named(problems):
    """The tensors that the problems name."""
    return [problem.split()[1] for problem in problems]


@pytest.mark.parametrize("name", MADE)
def test_whole_artefacts_have_no_problems(made, tiny, name):
    checkpoint, seen = open_checkpoint(str(tiny)), []
    found = verify(made[name], checkpoint, seen.append)
    assert (found.problems, found.notes) == ((), ())
    assert found.compared_tensors == len(checkpoint.weights.shapes)
    assert found.hashed_files == len(found.manifest.output_sha256)
    assert seen == sorted(seen) and seen[-1] == 1.0
    errors = tensor_errors(open_checkpoint(str(made[name])).weights, checkpoint)
    worst = sorted((error.relative for error in errors), reverse=True)[:WORST]
    assert [error.relative for error in found.worst] == worst
    assert name != "mlx-int4" or 0.05 < worst[0] < 0.2


@pytest.mark.parametrize("name", ["mlx-int4", "gguf-f16"])
def test_any_changed_byte_outside_the_manifest_is_found(made, tmp_path, name):
    rng, other = random.Random(3), copy_of(made[name], tmp_path)
    if other.is_dir():
        files = [(f, 0, f.stat().st_size) for f in other.iterdir() if f.name != MLX_FILE]
    else:
        data_begin, room = read_gguf(other).tensors[0].begin, other.read_bytes().index(b"edge.man")
        files = [(other, 0, room), (other, room + 20_000, data_begin), (other, data_begin, 10**5)]
    for path, begin, end in files:
        whole = path.read_bytes()
        for position in (begin, end - 1, *(rng.randrange(begin, end) for _ in range(12))):
            data = bytearray(whole)
            data[position] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            expect_named(other, path)
        path.write_bytes(whole)
    assert check(other, None).problems == ()


def expect_named(artefact, path):
    """A problem or an EdgeError names the file."""
    try:
        problems = check(artefact, None).problems
    except EdgeError as error:
        problems = (str(error),)
    assert any(str(path) in problem for problem in problems), problems


def test_longer_missing_and_unknown_files_are_named(made, tmp_path):
    other = copy_of(made["gguf-f16"], tmp_path)
    other.write_bytes(other.read_bytes() + b"\0")
    expect_named(other, other)
    other = copy_of(made["mlx-int4"], tmp_path)
    (other / "folder").mkdir()
    (other / ".DS_Store").write_bytes(b"the Finder's")
    (problem,) = check(other, None).problems
    assert f"{other / 'folder'} is not part of the artefact" in problem
    (other / "tokenizer_config.json").unlink()
    assert "tokenizer_config.json is missing" in check(other, None).problems[0]
    os.mkfifo(other / "tokenizer_config.json")
    os.truncate(other / "model.safetensors", 1 << 40)
    with alarm():
        problems = check(other, None).problems
    assert f"{other / 'tokenizer_config.json'} is not a regular file; check the path." in problems
    assert any("model.safetensors has changed since" in problem for problem in problems)
    (other / MLX_FILE).unlink()
    with pytest.raises(EdgeError, match=r"mlx-int4 has no manifest of edge"):
        check(other, None)


# In the checkpoint, in an MLX artefact and in a GGUF file.
MATRIX = ("mlp.up_proj", "blk.{}.ffn_up")
ODD_MATRIX = ("mlp.down_proj", "blk.{}.ffn_down")
NORM = ("input_layernorm", "blk.{}.attn_norm")


@pytest.mark.parametrize("name", MADE)
def test_swapped_tensors_are_found(made, tiny, tmp_path, name):
    other, is_mlx = copy_of(made[name], tmp_path), name.startswith("mlx")
    swapped = (MATRIX, NORM, ODD_MATRIX) if is_mlx else (MATRIX, NORM)
    for leaf, gguf in swapped:
        place = f"model.layers.{{}}.{leaf}" if is_mlx else gguf
        swap(other, place.format(0), place.format(1))
    assert check(other, None).problems == ()
    expected = {f"model.layers.{layer}.{leaf}.weight" for layer in (0, 1) for leaf, _ in swapped}
    assert expected <= set(named(check(other, tiny).problems))


def test_the_first_and_the_last_row_are_compared(tmp_path):
    tall = {**PLAIN, "vocab_size": 4 * PLACES * ROWS_PER_PLACE}
    tiny = write_checkpoint(tmp_path / "tall", tall)
    (artefact,) = make(tiny, tmp_path / "out", "mlx-fp16")
    for at in (1, -1):  # the high byte of the first weight, then of the last
        other = copy_of(artefact.path, tmp_path / f"{at}")
        rewrite(other, "lm_head.weight", lambda data, at=at: data.__setitem__(at, data[at] ^ 0x40))
        assert named(check(other, tiny).problems) == ["lm_head.weight"]


def test_values_that_are_not_finite_are_named(made, tiny, tmp_path):
    other = copy_of(made["mlx-fp16"], tmp_path)
    rewrite(other, "model.norm.weight", lambda data: data.__setitem__(0, np.nan), "<f2")
    found = check(other, tiny)
    (problem,) = found.problems
    assert "model.norm.weight holds values that" in problem
    assert all(error.name != "model.norm.weight" for error in found.worst)  # NaN is not JSON


def test_learning_may_move_norms(tiny, made, tmp_path):
    other = copy_of(made["mlx-int4"], tmp_path)
    rewrite(other, "model.norm.weight", lambda data: np.multiply(data, 1.01, data), "<f2")
    for learned, count in ((None, 1), ("gptq", 0)):
        sign_again(other, recipe={**read_manifest(other).recipe, "learned": learned})
        assert len(check(other, tiny).problems) == count


def test_exact_artefacts_are_compared_bit_for_bit(gptq, tmp_path):
    source, artefact = gptq
    found = check(artefact, source)
    assert (found.manifest.exact, found.problems) == (True, ())
    for rounded in make(source, artefact.parent, "mlx-int8", "gguf-f16", "gguf-q8_0"):
        assert check(rounded.path, source).problems == ()
    stem = "model.layers.1.mlp.down_proj"
    for part in (f"{stem}.weight", f"{stem}.scales", f"{stem}.biases"):
        other = copy_of(artefact, tmp_path / part)
        rewrite(other, part, lambda data: data.__setitem__(-2, data[-2] ^ 1))
        problems = check(other, source).problems
        assert problems == (f"tensor {stem}.weight differs from the source; convert again.",)
    other = copy_of(artefact, tmp_path)
    swap(other, "lm_head", "model.embed_tokens")  # held in float
    order = next(name for name in places(other) if name.endswith("1.mlp.gate_up_order"))
    rewrite(other, order, lambda data: data.__setitem__(slice(0, 2), data[1::-1]), "<i4")
    wrong = ["model.embed_tokens", "lm_head"]
    wrong += [f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up")]
    assert set(named(check(other, source).problems)) == {f"{stem}.weight" for stem in wrong}


def test_the_source_is_compared_by_its_digests(made, tiny, tmp_path):
    other = copy_of(made["mlx-int4"], tmp_path)
    recorded = read_manifest(other).source_sha256
    sign_again(other, source_sha256={**recorded, "model.safetensors": "0" * 64})
    (problem,) = check(other, tiny).problems
    assert problem.startswith("model.safetensors of tiny has changed since")


def test_another_checkpoint_and_a_missing_one(made, tmp_path):
    other = write_checkpoint(tmp_path / "other", RAW, seed=3)
    found = check(made["mlx-int4"], other)
    assert (found.compared_tensors, len(found.problems)) == (0, 1)
    assert "was not made from other as it is now; name its own source (tiny)" in found.problems[0]
    assert find_origin(made["mlx-int4"]) is None  # a directory, whose place is not written down
    found = check(made["mlx-int4"], None)
    assert found.problems == ()
    assert found.notes == ("its source is not available, so no tensor was compared with it.",)


def test_corrections_belong_to_the_source(tiny, tmp_path):
    corrections = Corrections(rope_theta=123.0, context=77)
    (artefact,) = make(tiny, tmp_path / "out", "mlx-int4", corrections=corrections)
    origin = find_origin(artefact.path, str(tiny))
    assert origin.corrections == corrections
    assert verify(artefact.path, origin, lambda _: None).problems == ()
    assert "was not made from tiny" in check(artefact.path, tiny).problems[0]


def test_the_demo_and_synthetic_models_are_found(demo_out, tmp_path):
    assert find_origin(demo_out / "mlx-int4").source.origin == "demo"
    corrections = Corrections(layers=1)
    synthetic = open_checkpoint("synthetic:stable-code-3b", corrections=corrections)
    artefact = copy_of(demo_out / "mlx-int4", tmp_path)
    claim = {"source": "synthetic:stable-code-3b", "corrections": corrections}
    sign_again(artefact, **claim, fingerprint=synthetic.fingerprint)
    assert find_origin(artefact).fingerprint == synthetic.fingerprint
    for source in ("demo", "synthetic:stable-code-3b", "synthetic:no-such"):  # names of folders
        sign_again(artefact, source=source, fingerprint="of another")
        assert find_origin(artefact) is None


def test_a_model_of_the_hub_is_found_in_the_cache(made, tiny, tmp_path, monkeypatch):
    cache = {("owner/name", "a" * 40): tiny}
    monkeypatch.setattr("edge.convert.sources.hub.cached", lambda *key: cache.get(key))
    artefact = copy_of(made["mlx-int4"], tmp_path)
    for revision, found in (("a" * 40, True), ("b" * 40, False)):
        sign_again(artefact, source="owner/name", revision=revision)
        assert (find_origin(artefact) is not None) == found

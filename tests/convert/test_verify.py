"""Whatever is wrong with a finished artefact, verify says so and names it."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from edge.cli.main import main
from edge.convert.artefacts.manifest import (
    MLX_FILE,
    file_sha256,
    gguf_sha256,
    read_manifest,
    write_manifest,
)
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import Corrections, open_checkpoint
from edge.convert.compare import PLACES, ROWS_PER_PLACE, tensor_errors
from edge.convert.convert import convert
from edge.convert.mend import mend_gguf
from edge.convert.targets import Options
from edge.convert.verify import WORST, find_origin, verify
from edge.errors import EdgeError
from edge.formats.gguf import read_gguf
from edge.formats.safetensors import SafetensorsFile
from tests.support.gptq_packer import STABLELM, Settings, write_gptq
from tests.support.tiny import CONFIGS, PLAIN, write_checkpoint

MADE = (
    *("mlx-fp16", "mlx-bf16", "mlx-int8", "mlx-int4", "mlx-int2", "mlx-mixed_2_6"),
    *("gguf-f32", "gguf-f16", "gguf-bf16", "gguf-q8_0", "gguf-q4_k_m", "gguf-q2_k"),
)
# Float32, rows that divide into every block, and a down_proj that MLX's groups leave in float.
RAW = {**PLAIN, "hidden_size": 256, "intermediate_size": 288, "use_qkv_bias": True}


def run(source, out, *names, **options):
    corrections = options.pop("corrections", None)
    checkpoint = source if hasattr(source, "weights") else open_checkpoint(str(source))
    if corrections:
        checkpoint = open_checkpoint(str(source), corrections=corrections)
    recipes = [RECIPES[name] for name in names]
    made = convert(checkpoint, recipes, out, lambda *_: None, Options(**options))
    return [artefact.path for artefact in made]


def check(artefact, source):
    checkpoint = None if source is None else open_checkpoint(str(source))
    return verify(artefact, checkpoint, lambda _: None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", RAW)


@pytest.fixture(scope="module")
def made(tiny):
    """Artefacts of the tiny checkpoint by name; not to be changed."""
    return dict(zip(MADE, run(tiny, tiny.parent / "out", *MADE), strict=True))


def copy_of(artefact, tmp_path):
    target = tmp_path / artefact.name
    tmp_path.mkdir(exist_ok=True)
    if artefact.is_dir():
        shutil.copytree(artefact, target)
    else:
        shutil.copyfile(artefact, target)
    return target


def sign_again(artefact):
    """Digests and manifest of what the artefact now is, as its maker would have them."""
    if artefact.is_dir():
        files = [f for f in artefact.iterdir() if f.name != MLX_FILE]
        digests = {f.name: file_sha256(f) for f in files}
    else:
        digests = {artefact.name: gguf_sha256(artefact)}
    write_manifest(artefact, replace(read_manifest(artefact), output_sha256=digests))


def places(artefact):
    """File, begin and end of every tensor's data, by the name that the artefact has for it."""
    if not artefact.is_dir():
        tensors = read_gguf(artefact).tensors
        return {t.name: (artefact, t.begin, t.begin + t.data_bytes) for t in tensors}
    file = SafetensorsFile(artefact / "model.safetensors")
    return {name: (file.path, e.begin, e.end) for name, e in file.entries.items()}


def swap(artefact, first, second):
    """Exchange all parts of two tensors, and sign again."""
    found = places(artefact)
    for name in [name for name in found if name.startswith(f"{first}.")]:
        (file, *a), (_, *b) = found[name], found[name.replace(first, second)]
        assert a[1] - a[0] == b[1] - b[0]
        data = bytearray(file.read_bytes())
        data[slice(*a)], data[slice(*b)] = data[slice(*b)], data[slice(*a)]
        file.write_bytes(data)
    sign_again(artefact)


def flip(path, position, mask):
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


# --- what is well


@pytest.mark.parametrize("name", MADE)
def test_what_was_made_is_as_it_should_be(made, tiny, name):
    seen = []
    found = verify(made[name], open_checkpoint(str(tiny)), seen.append)
    assert found.problems == ()
    assert found.remarks == ()
    assert found.compared_tensors == len(open_checkpoint(str(tiny)).weights.shapes)
    assert found.hashed_files == len(found.manifest.output_sha256)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_the_worst_tensors_are_named_in_order(made, tiny):
    found = check(made["mlx-int4"], tiny)
    opened = open_checkpoint(str(made["mlx-int4"]))
    every = {e.name: e.relative for e in tensor_errors(opened.weights, open_checkpoint(str(tiny)))}
    expected = sorted(every.values(), reverse=True)[:WORST]
    assert [error.relative for error in found.worst] == expected
    assert all(every[error.name] == error.relative for error in found.worst)
    assert 0.05 < expected[0] < 0.2


def test_rows_are_looked_at_from_the_first_to_the_last(tmp_path):
    rows = 4 * PLACES * ROWS_PER_PLACE
    tiny = write_checkpoint(tmp_path / "tall", {**PLAIN, "vocab_size": rows})
    (artefact,) = run(tiny, tmp_path / "out", "mlx-fp16")
    file, begin, end = places(artefact)["lm_head.weight"]
    for at in (begin, end - 2):  # the high byte of the first weight, then of the last
        other = copy_of(artefact, tmp_path / f"{at}")
        flip(other / file.name, at + 1, 0x40)
        sign_again(other)
        assert [p.split()[1] for p in check(other, tiny).problems] == ["lm_head.weight"]


# --- changed files


def test_any_changed_byte_of_a_directory_is_found(made, tmp_path):
    rng = random.Random(3)
    for name in ("mlx-int4", "mlx-fp16"):
        for original in sorted(made[name].iterdir()):
            size = original.stat().st_size
            for position in (0, size // 2, size - 1, *(rng.randrange(size) for _ in range(12))):
                other = copy_of(made[name], tmp_path)
                flip(other / original.name, position, 1 << rng.randrange(8))
                expect_named(other, other if original.name == MLX_FILE else other / original.name)
                shutil.rmtree(other)


@pytest.mark.parametrize("name", ["gguf-f16", "gguf-q4_k_m"])
def test_any_changed_byte_of_a_gguf_file_is_found(made, tmp_path, name):
    rng = random.Random(4)
    file = read_gguf(made[name])
    room = file.key_spans["edge.manifest"]
    spans = [
        (0, file.data_begin),
        room,
        (room[1] - 10_000, room[1]),
        file.tensor_span,
        (0, file.file_bytes),
    ]
    positions = [p for b, e in spans for p in (b, e - 1, *(rng.randrange(b, e) for _ in range(25)))]
    other = copy_of(made[name], tmp_path)
    for position in positions:
        mask = 1 << rng.randrange(8)
        flip(other, position, mask)
        expect_named(other, other)
        flip(other, position, mask)
    assert check(other, None).problems == ()


def expect_named(artefact, path):
    """A problem or an error that names the file, and no other exception."""
    try:
        problems = check(artefact, None).problems
    except EdgeError as error:
        problems = (str(error),)
    assert any(str(path) in problem for problem in problems), problems


def test_missing_and_strange_files_are_named(made, tmp_path):
    for name in sorted(p.name for p in made["mlx-int4"].iterdir() if p.name != MLX_FILE):
        other = copy_of(made["mlx-int4"], tmp_path)
        (other / name).unlink()
        assert any(f"{other / name} is missing" in p for p in check(other, None).problems)
        shutil.rmtree(other)
    other = copy_of(made["mlx-int4"], tmp_path)
    (other / "tokenizer.model").write_bytes(b"x")
    (other / "folder").mkdir()
    (other / ".DS_Store").write_bytes(b"the Finder's")
    strange = [f"{other / n} is not part of the artefact; remove it." for n in ("folder",)]
    strange.append(f"{other / 'tokenizer.model'} is not part of the artefact; remove it.")
    assert list(check(other, None).problems) == strange


def test_a_longer_and_a_shorter_file_are_found(made, tmp_path):
    other = copy_of(made["gguf-f16"], tmp_path)
    data = other.read_bytes()
    for changed in (data + b"\0", data[:-1]):
        other.write_bytes(changed)
        expect_named(other, other)


def test_without_a_manifest_nothing_can_be_said(made, tmp_path):
    other = copy_of(made["mlx-int4"], tmp_path)
    (other / MLX_FILE).unlink()
    with pytest.raises(EdgeError, match=r"mlx-int4 has no manifest of edge"):
        check(other, None)
    with pytest.raises(EdgeError, match=r"nowhere is missing; check the path"):
        check(tmp_path / "nowhere", None)


# --- what only the comparison can tell


# In the checkpoint, in an MLX artefact and in a GGUF file.
MATRIX = ("mlp.up_proj", "blk.{}.ffn_up")
ODD_MATRIX = ("mlp.down_proj", "blk.{}.ffn_down")
NORM = ("input_layernorm", "blk.{}.attn_norm")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        *((name, tensor) for name in MADE for tensor in (MATRIX, NORM)),
        *((name, ODD_MATRIX) for name in MADE if name.startswith("mlx")),
    ],
)
def test_tensors_in_each_others_place_are_found(made, tiny, tmp_path, name, tensor):
    other = copy_of(made[name], tmp_path)
    leaf, gguf = tensor
    place = f"model.layers.{{}}.{leaf}" if name.startswith("mlx") else gguf
    swap(other, place.format(0), place.format(1))
    assert check(other, None).problems == ()
    problems = check(other, tiny).problems
    for layer in (0, 1):
        named = f"tensor model.layers.{layer}.{leaf}.weight differs"
        assert any(problem.startswith(named) for problem in problems), problems


@pytest.mark.parametrize(("name", "bad"), [("mlx-fp16", 0x7E00), ("mlx-fp16", 0x7C00)])
def test_what_is_not_finite_is_a_problem_and_valid_json(made, tiny, tmp_path, name, bad, capsys):
    other = copy_of(made[name], tmp_path)
    file, begin, _ = places(other)["model.norm.weight"]
    data = bytearray(file.read_bytes())
    data[begin : begin + 2] = bad.to_bytes(2, "little")
    file.write_bytes(data)
    sign_again(other)
    assert main(["convert", str(tiny), "--verify", str(other), "-o", "json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["problems"] == [
        "tensor model.norm.weight holds values that are not finite; convert again."
    ]


def test_another_checkpoint_is_not_the_source(made, tmp_path):
    other = write_checkpoint(tmp_path / "other", RAW, seed=3)
    for name in ("mlx-int4", "gguf-q8_0"):
        found = check(made[name], other)
        assert found.compared_tensors == 0
        assert len(found.problems) == 1
        assert "was not made from other as it is now; name its own source (tiny)" in str(
            found.problems
        )


def test_a_source_that_is_not_here_is_a_remark(made):
    assert find_origin(made["mlx-int4"]) is None  # a directory, whose place is not written down
    found = check(made["mlx-int4"], None)
    assert found.problems == ()
    assert found.remarks == ("its source is not here, so no tensor was compared with it.",)


# --- the source's own values


@pytest.fixture(scope="module")
def gptq(tmp_path_factory):
    """A GPTQ checkpoint with act-order and its exact MLX artefact."""
    path = tmp_path_factory.mktemp("gptq")
    write_gptq(path / "source", STABLELM, Settings())
    return path / "source", run(path / "source", path / "out", "mlx-int4")[0]


def test_exact_artefacts_are_compared_bit_for_bit(gptq, tmp_path):
    source, artefact = gptq
    found = check(artefact, source)
    assert found.manifest.exact
    assert found.problems == ()
    assert found.compared_tensors == len(open_checkpoint(str(source)).weights.shapes)
    stem = "model.layers.1.mlp.down_proj"
    for part in (f"{stem}.weight", f"{stem}.scales", f"{stem}.biases"):
        other = copy_of(artefact, tmp_path / part)
        file, _, end = places(other)[part]
        flip(file, end - 2, 1)
        sign_again(other)
        problems = check(other, source).problems
        assert problems == (f"tensor {stem}.weight is not the source's own any more.",)
    other = copy_of(artefact, tmp_path)
    order = next(name for name in places(other) if name.endswith("1.mlp.gate_up_order"))
    file, begin, _ = places(other)[order]
    numbers = np.frombuffer(file.read_bytes()[begin : begin + 8], "<i4")[::-1]
    data = bytearray(file.read_bytes())
    data[begin : begin + 8] = numbers.tobytes()
    file.write_bytes(data)
    sign_again(other)
    assert {p.split()[1] for p in check(other, source).problems} == {
        "model.layers.1.mlp.gate_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    }


def test_what_an_exact_artefact_holds_in_float_is_compared_too(gptq, tmp_path):
    source, artefact = gptq
    other = copy_of(artefact, tmp_path)
    swap(other, "lm_head", "model.embed_tokens")
    named = [problem.split()[1] for problem in check(other, source).problems]
    assert named == ["model.embed_tokens.weight", "lm_head.weight"]


def test_rounded_artefacts_of_a_quantised_source_verify(gptq):
    source, artefact = gptq
    for path in run(source, artefact.parent, "mlx-fp16", "mlx-int8", "gguf-f16", "gguf-q8_0"):
        assert check(path, source).problems == ()


def test_a_mended_file_is_compared_in_full(made, tmp_path):
    source = made["gguf-q4_k_m"]
    quiet = lambda _: None  # noqa: E731
    mended = mend_gguf(str(source), tmp_path, 500.0, False, quiet, quiet)
    origin = find_origin(mended, str(source))
    found = verify(mended, origin, lambda _: None)
    assert found.problems == ()
    assert found.compared_tensors == len(origin.weights.shapes)
    swap(mended, "blk.0.attn_norm", "blk.1.attn_norm")
    assert len(verify(mended, origin, lambda _: None).problems) >= 2


def test_what_learning_has_moved_is_no_problem(tiny, made, tmp_path):
    """Distillation also trains norms and biases a little."""
    for learned, count in ((None, 1), ("dwq", 0)):
        other = copy_of(made["mlx-int4"], tmp_path / str(learned))
        file, begin, _ = places(other)["model.norm.weight"]
        data = bytearray(file.read_bytes())
        numbers = np.frombuffer(data, "<f2", 256, begin) * np.float16(1.01)
        data[begin : begin + 512] = numbers.tobytes()
        file.write_bytes(data)
        recipe = {**read_manifest(other).recipe, "learned": learned}
        write_manifest(other, replace(read_manifest(other), recipe=recipe))
        sign_again(other)
        assert len(check(other, tiny).problems) == count


# --- where the source is


def test_corrections_belong_to_the_source(tiny, tmp_path):
    corrections = Corrections(rope_theta=123.0, context=77)
    (artefact,) = run(tiny, tmp_path / "out", "mlx-int4", corrections=corrections)
    origin = find_origin(artefact, str(tiny))
    assert origin.corrections == corrections
    assert verify(artefact, origin, lambda _: None).problems == ()
    assert "was not made from tiny" in check(artefact, tiny).problems[0]


@pytest.mark.parametrize("corrections", [{"rope_theta": "x"}, {"layers": []}, {"colour": 3}, {}])
def test_corrections_that_make_no_sense_are_left_out(tiny, made, tmp_path, corrections):
    other = copy_of(made["mlx-int4"], tmp_path)
    write_manifest(other, replace(read_manifest(other), corrections=corrections))
    assert find_origin(other, str(tiny)).corrections == Corrections()


def test_the_demo_and_synthetic_models_are_always_here(demo_out, tmp_path):
    origin = find_origin(demo_out / "mlx-int4")
    assert origin.source.origin == "demo"
    synthetic = open_checkpoint("synthetic:stable-code-3b", corrections=Corrections(layers=1))
    artefact = copy_of(demo_out / "mlx-int4", tmp_path)
    claim = replace(
        read_manifest(artefact),
        source="synthetic:stable-code-3b",
        corrections={"layers": 1},
        fingerprint=synthetic.fingerprint,
    )
    write_manifest(artefact, claim)
    assert find_origin(artefact).fingerprint == synthetic.fingerprint


@pytest.mark.parametrize("source", ["demo", "synthetic:stable-code-3b", "synthetic:no-such"])
def test_a_directory_of_such_a_name_is_not_taken_for_it(made, tmp_path, source):
    artefact = copy_of(made["mlx-int4"], tmp_path)
    write_manifest(artefact, replace(read_manifest(artefact), source=source))
    assert find_origin(artefact) is None


def test_a_model_of_the_hub_is_found_in_the_cache(tiny, tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = "0123456789" * 4
    folder = tmp_path / "cache" / "models--owner--name"
    shutil.copytree(tiny, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (artefact,) = run(open_checkpoint("owner/name"), tmp_path / "out", "mlx-int4")
    manifest = read_manifest(artefact)
    assert (manifest.source, manifest.revision) == ("owner/name", commit)
    (folder / "refs" / "main").write_text("f" * 40)  # the branch has moved on
    origin = find_origin(artefact)
    assert verify(artefact, origin, lambda _: None).problems == ()
    (folder / "snapshots" / commit / "config.json").unlink()
    assert find_origin(artefact) is None


# --- the command


def test_the_command_tells_all_and_exits_with_1(made, tiny, tmp_path, capsys):
    assert main(["convert", str(tiny), "--verify", str(made["gguf-q8_0"])]) == 0
    text = capsys.readouterr().out
    assert "gguf-q8_0 of tiny" in text
    assert "1 files hashed" in text
    assert text.endswith("as it should be\n")
    other = copy_of(made["mlx-int4"], tmp_path)
    flip(other / "tokenizer.json", 5, 1)
    assert main(["convert", "--verify", str(other)]) == 1
    assert f"PROBLEM: {other / 'tokenizer.json'} has changed" in capsys.readouterr().out


def test_the_commands_json_is_one_document(made, tiny, capsys):
    assert main(["convert", str(tiny), "--verify", str(made["mlx-int4"]), "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["problems"] == []
    assert found["manifest"]["source"] == "tiny"
    assert len(found["worst"]) == WORST
    assert {"name", "relative", "largest"} == found["worst"][0].keys()


def test_every_switch_of_the_family_verifies(tmp_path):
    for name in ("qk-layernorm", "parallel", "tied", "stablelm-2-12b"):
        source = write_checkpoint(tmp_path / name, CONFIGS[name])
        for path in run(source, tmp_path / f"{name}-out", "mlx-int4", "mlx-bf16", "gguf-bf16"):
            assert check(path, source).problems == (), path

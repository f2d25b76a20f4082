"""Which files of a directory are its model, for every reader."""

import json
import os
import shutil

import pytest
from mlx_lm.utils import load_model as mlx_lm_load_model

from edge.bench.engines.mlx_lm import open_peer
from edge.bench.files import open_files
from edge.convert.checkpoint import open_checkpoint
from edge.convert.verify import verify
from edge.errors import EdgeError
from edge.formats.folder import weight_files
from edge.formats.safetensors import INDEX
from edge.model.load import load, open_model
from tests.support.alarm import alarm
from tests.support.tiny import PLAIN, write_checkpoint

MODEL, OLD, GPTQ = "model.safetensors", "model_old.safetensors", "gptq_model-4bit-128g.safetensors"
PARTS = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
IGNORED = ("adapter_model.safetensors", "adapters.safetensors", "0000100_adapters.safetensors")
IGNORED += ("consolidated.safetensors", "consolidated-00001-of-00002.safetensors")
IGNORED += (f"._{MODEL}", "._zzz.safetensors", "pytorch_model.bin", f"{MODEL}.part")


@pytest.mark.parametrize(
    ("listed", "names", "wanted"),
    [
        ([], [MODEL, *IGNORED], [MODEL]),
        ([], [GPTQ, *IGNORED], [GPTQ]),
        ([], [*PARTS, *IGNORED], PARTS),
        ([], [MODEL, "model.fp16.safetensors"], [MODEL]),
        ([], ["llama-fp16.safetensors"], ["llama-fp16.safetensors"]),
        ([MODEL], [MODEL, *IGNORED], [MODEL]),
        (["a.safetensors", "b.safetensors"], ["a.safetensors", "b.safetensors"], None),
        (PARTS, [MODEL], [MODEL]),  # an index of another build
        (PARTS, PARTS[:1], f"has no {PARTS[1]}, which {INDEX} lists"),
        (PARTS, [PARTS[0], MODEL], f"has no {PARTS[1]}, which {INDEX} lists"),
        (PARTS, [GPTQ], f"has no {PARTS[0]}, which {INDEX} lists"),
        (["._a.safetensors"], ["._a.safetensors"], f"has no ._a.safetensors, which {INDEX} lists"),
        (PARTS, [*PARTS, MODEL], f"{MODEL} does not belong to the model beside it ({PARTS[0]})"),
        ([MODEL], [MODEL, OLD], f"{OLD} does not belong to the model beside it ({MODEL})"),
        ([], [MODEL, OLD], f"{OLD} does not belong to the model beside it ({MODEL})"),
        ([], [MODEL, *PARTS], f"{PARTS[0]} does not belong to the model beside it ({MODEL})"),
        ([], [GPTQ, OLD], f"holds {GPTQ}, {OLD} but no {INDEX}"),
        ([], [*PARTS, OLD], f"holds {PARTS[0]}, {PARTS[1]} and 1 more but no {INDEX}"),
        ([], PARTS[1:], f"holds {PARTS[1]} but no {INDEX}"),
        (
            [],
            ["adapters.safetensors"],
            "no weights but adapters.safetensors, which",
        ),
        ([], ["pytorch_model.bin"], "only pytorch_model.bin, a pickle"),
        ([], [], "holds no weights"),
    ],
)
def test_weights_are_those_of_one_model(listed, names, wanted, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "original").mkdir()
    if listed:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {n: n for n in listed}}))
    if isinstance(wanted, str):
        with pytest.raises(EdgeError) as error:
            weight_files(tmp_path)
        assert wanted in str(error.value)
    else:
        assert [file.name for file in weight_files(tmp_path)] == (wanted or names)


@pytest.fixture
def copied(demo_out, tmp_path):
    """A copy of the demo's artefact."""
    return shutil.copytree(demo_out / "mlx-int4", tmp_path / "copied")


def problems(path):
    """Every reader's complaint of a directory."""

    def verified(path):
        problems = verify(path, None, lambda _: None).problems
        if any("is not part" not in problem for problem in problems):
            raise EdgeError(" ".join(problems))

    readers = (lambda p: open_checkpoint(str(p)), lambda p: open_files([str(p)]), verified)
    for read in (*readers, load, open_model):
        try:
            with alarm():
                read(path)
        except EdgeError as error:
            yield str(error)
        else:
            yield None


def linked(path, name):
    outside = path.parent / "outside"
    if (path / name).exists():
        (path / name).rename(outside)
    outside.touch()
    (path / name).symlink_to(outside)


def piped(path, name):
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)


def other_model(path, name):
    write_checkpoint(path.parent / "other", PLAIN)
    shutil.copy(path.parent / "other" / MODEL, path / name)


@pytest.mark.parametrize(
    ("harm", "name", "words"),
    [
        (other_model, OLD, "does not belong to the model beside it"),
        (linked, MODEL, "leads out of its directory"),
        (linked, INDEX, "leads out of its directory"),
        (linked, "config.json", "leads out of its directory"),
        (piped, MODEL, "is not a regular file"),
        (piped, INDEX, "is not a regular file"),
        (piped, "config.json", "is not a regular file"),
    ],
)
def test_every_reader_refuses(harm, name, words, copied):
    harm(copied, name)
    assert [words in str(problem) for problem in problems(copied)] == [True] * 5


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "added_tokens.json"])
def test_links_to_a_system_file_do_not_reach_the_prompt(name, copied):
    linked(copied, name)
    for read in (load, open_model, lambda path: open_checkpoint(str(path))):
        with pytest.raises(EdgeError, match="leads out of its directory"):
            read(copied)


def test_transformers_does_not_wait_for_a_pipe(copied):
    (copied / "tokenizer.json").unlink()
    piped(copied, "tokenizer.model")
    with alarm(), pytest.raises(EdgeError, match=r"tokenizer\.model is not a regular file"):
        load(copied)


def test_companions_of_macos_are_not_model_files(copied):
    for file in [*copied.iterdir()]:
        (copied / f"._{file.name}").write_bytes(b"\0\5\x16\7")
    (copied / ".DS_Store").touch()
    assert set(problems(copied)) == {None}
    assert verify(copied, None, lambda _: None).problems == ()


def test_mlx_lm_does_not_read_another_precision_as_well(copied):
    other_model(copied, "model.fp16.safetensors")
    assert set(problems(copied)) == {None}
    with pytest.raises(EdgeError, match=r"mlx-lm would also read .*model\.fp16\.safetensors"):
        open_peer(copied)
    (copied / "model.fp16.safetensors").unlink()
    mlx_lm_load_model(copied)

"""Checkpoints by name, and their artefacts: contents, replacement, failures."""

import subprocess
import sys
from concurrent.futures import CancelledError

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file

from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.convert.targets import file_bytes
from edge.errors import EdgeError
from tests.support.conversions import check, edge_logits, make
from tests.support.tiny import CONFIGS, PLAIN, edit_tensors, write_checkpoint

UP_PROJ = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", CONFIGS["stable-code"])


def test_names_of_checkpoints_and_of_missing_files(tiny):
    assert open_checkpoint("demo").source.name == "demo"
    assert open_checkpoint(str(tiny)).source.origin == "tiny"  # not its path
    for name in (
        "nothing-here",
        "../elsewhere/x",
        "x.gguf",
        "",
        "~no-such-user/model/x",
        "x" * 300,
    ):
        with pytest.raises(EdgeError, match=r"^there is no checkpoint|is missing; check"):
            open_checkpoint(name)
    with pytest.raises(EdgeError, match="is not a GGUF file or directory"):
        open_checkpoint(str(tiny / "config.json"))
    for name in ("tokenizer.json", "config.json"):
        (tiny / name).unlink()
        with pytest.raises(EdgeError, match=rf"{name} is missing"):
            open_checkpoint(str(tiny))


def test_the_fingerprint_depends_on_every_weight_file(tmp_path):
    paths = [write_checkpoint(tmp_path / name, PLAIN, int(name[-1])) for name in ("0", "a0", "1")]
    first, same, other = (open_checkpoint(str(path)).fingerprint for path in paths)
    assert first == same != other
    # A shard smaller than one sample.
    tensors = load_file(paths[0] / "model.safetensors")
    small = {"model.norm.bias": tensors.pop("model.norm.bias")}
    (paths[0] / "model.safetensors").unlink()
    for part, held in ((1, small), (2, tensors)):
        save_file(held, paths[0] / f"model-0000{part}-of-00002.safetensors")
    assert open_checkpoint(str(paths[0])).fingerprint != first


def test_gguf_metadata(demo_out):
    fields = GGUFReader(str(demo_out / "gguf-q6_k.gguf")).fields
    found = {key: fields[key].contents() for key in fields}
    expected = {"general.architecture": "stablelm", "general.file_type": 18}
    expected |= {"stablelm.rope.freq_base": 1_000_000, "stablelm.rope.dimension_count": 16}
    expected |= {"stablelm.context_length": 1024}
    assert found | expected == found
    assert "<|im_start|>" in found["tokenizer.chat_template"]
    tokens = found["tokenizer.ggml.tokens"]
    assert len(tokens) == 4096
    special = {"eos": "<|endoftext|>", "bos": "<|endoftext|>", "eot": "<|im_end|>"}
    special |= {"fim_pre": "<fim_prefix>", "fim_mid": "<fim_middle>", "fim_suf": "<fim_suffix>"}
    for key, token in {**special, "fim_pad": "<fim_pad>", "fim_rep": "<reponame>"}.items():
        assert tokens[found[f"tokenizer.ggml.{key}_token_id"]] == token


def test_shards_are_written_and_read_as_one_checkpoint(tiny, tmp_path, monkeypatch):
    (whole,) = make(tiny, tmp_path / "whole", "mlx-fp16")
    monkeypatch.setattr("edge.formats.safetensors.SHARD_BYTES", 60_000)
    (sharded,) = make(tiny, tmp_path / "sharded", "mlx-fp16")
    shards = sorted(sharded.path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert np.array_equal(edge_logits(sharded.path), edge_logits(whole.path))
    assert check(sharded.path, tiny).problems == ()


def test_a_weight_that_float16_cannot_hold_is_named(tmp_path):
    path = write_checkpoint(tmp_path / "large", PLAIN)
    edit_tensors(path, lambda tensors: tensors[UP_PROJ].__setitem__((3, 5), 2.0**20))
    made = make(path, tmp_path / "bf16", "mlx-bf16", "gguf-bf16", "gguf-f32")
    tensor = mx.load(str(made[0].path / "model.safetensors"))[UP_PROJ]
    assert (tensor.dtype, tensor[3, 5].item()) == (mx.bfloat16, 2.0**20)
    for name in ("mlx-fp16", "mlx-int4", "gguf-f16"):
        with pytest.raises(EdgeError, match=rf"tensor {UP_PROJ} .*float16 cannot hold"):
            make(path, tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mlx-int4", "gguf-q8_0"])
def test_an_artefact_of_this_source_is_kept_until_forced(tmp_path, name):
    out = tmp_path / "out"
    source, other = (write_checkpoint(tmp_path / f"{seed}", PLAIN, seed) for seed in (0, 7))
    (first,) = make(source, out, name)
    assert list(out.iterdir()) == [first.path]  # no float file is left
    inode = first.path.stat().st_ino
    assert [first.kept, make(source, out, name)[0].kept] == [False, True]
    with pytest.raises(EdgeError, match=r"from another checkpoint; replace it with .*--force"):
        make(other, out, name)
    assert first.path.stat().st_ino == inode
    assert not make(other, out, name, force=True)[0].kept
    assert first.path.stat().st_ino != inode
    record = first.path / "edge.json" if first.path.is_dir() else first.path
    record.write_bytes(record.read_bytes()[:500])
    with pytest.raises(EdgeError, match="is not a complete artefact"):
        make(other, out, name)


def test_an_artefact_never_replaces_its_source(tiny, tmp_path):
    for source in make(tiny, tmp_path / "out", "mlx-int4", "gguf-q8_0"):
        before = file_bytes(source.path)
        with pytest.raises(EdgeError, match=r"is the source itself; choose another --out"):
            make(source.path, tmp_path / "out", source.recipe.name, force=True)
        assert file_bytes(source.path) == before


@pytest.mark.parametrize("name", ["mlx-fp16", "gguf-f16", "gguf-q8_0"])
def test_a_full_disk_is_reported_and_the_old_artefact_stays(tiny, tmp_path, name):
    """Simulated by a limit of 40 kB on the size of files."""
    make(tiny, tmp_path / "out", name)
    before = [(path, file_bytes(path)) for path in (tmp_path / "out").iterdir()]
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "from edge.cli.main import main\n"
        f"sys.exit(main(['convert', 'tiny', '--to', {name!r}, '--out', 'out', '--force']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert [(path, file_bytes(path)) for path in (tmp_path / "out").iterdir()] == before


def test_an_interrupt_does_not_wait_for_the_digests_of_the_source(tiny, tmp_path, monkeypatch):
    read = []

    def interrupt(name, done):
        raise KeyboardInterrupt

    def stopped_digest(path, stopped):
        read.append(path)
        while not stopped():
            pass
        raise CancelledError

    monkeypatch.setattr("edge.convert.verify.file_sha256", stopped_digest)
    with pytest.raises(KeyboardInterrupt):
        convert(open_checkpoint(str(tiny)), [RECIPES["mlx-fp16"]], tmp_path / "out", interrupt)
    assert len(read) == 1
    assert not (tmp_path / "out").exists()

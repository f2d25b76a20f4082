"""Artefacts of a checkpoint: what they hold, what is kept or replaced, and how it fails."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import CancelledError

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file

import edge
from edge.convert.artefacts.gguf import GgufWriter
from edge.convert.artefacts.mlx import MlxWriter
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.artefacts.sizes import file_bytes
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.convert.targets import Options
from edge.errors import EdgeError
from edge.model.load import load_model
from tests.support.tiny import CONFIGS, PLAIN, token_ids, write_checkpoint

UP_PROJ = "model.layers.1.mlp.up_proj.weight"


def run(path, out, *names, progress=lambda *_: None, **options):
    recipes = [RECIPES[name] for name in names]
    return convert(open_checkpoint(str(path)), recipes, out, progress, Options(**options))


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", CONFIGS["stable-code"])


def with_weight(path, value):
    """A tiny checkpoint with one weight of that value."""
    write_checkpoint(path, PLAIN)
    tensors = load_file(path / "model.safetensors")
    tensors[UP_PROJ][3, 5] = value
    save_file(tensors, path / "model.safetensors")
    return path


def stored(path):
    return mx.load(str(path / "model.safetensors"))


# --- what they hold


@pytest.mark.parametrize("name", ["mlx-fp16", "mlx-int4"])
def test_mlx_artefacts_load_in_plain_mlx_lm(demo_out, name):
    from mlx_lm import load

    peer, peer_tokenizer = load(str(demo_out / name))
    ours, tokenizer = edge.load(demo_out / name)
    ids = tokenizer.encode("def add(a, b):\n    return")
    assert ids == peer_tokenizer.encode("def add(a, b):\n    return")
    peer.set_dtype(mx.float32)
    difference = np.array(ours(mx.array([ids]))) - np.array(peer(mx.array([ids])))
    assert np.abs(difference).max() < 1e-4


def test_fp16_weights_are_the_checkpoints(demo_out):
    weights = open_checkpoint("demo").weights
    tensors = stored(demo_out / "mlx-fp16")
    assert tensors.keys() == weights.shapes.keys()
    for name, array in tensors.items():
        assert np.array_equal(np.array(array), weights.read(name).astype(np.float16))


def test_gguf_metadata(demo_out):
    fields = GGUFReader(str(demo_out / "gguf-q6_k.gguf")).fields
    found = {key: fields[key].contents() for key in fields}
    assert found["general.architecture"] == "stablelm"
    assert found["general.file_type"] == 18
    assert found["stablelm.rope.freq_base"] == 1_000_000
    assert found["stablelm.rope.dimension_count"] == 16
    assert found["stablelm.context_length"] == 1024
    assert "<|im_start|>" in found["tokenizer.chat_template"]
    tokens = found["tokenizer.ggml.tokens"]
    assert len(tokens) == 4096
    for key, token in {
        "eos": "<|endoftext|>",
        "bos": "<|endoftext|>",
        "eot": "<|im_end|>",
        "fim_pre": "<fim_prefix>",
        "fim_mid": "<fim_middle>",
        "fim_suf": "<fim_suffix>",
        "fim_pad": "<fim_pad>",
        "fim_rep": "<reponame>",
    }.items():
        assert tokens[found[f"tokenizer.ggml.{key}_token_id"]] == token


def test_a_sharded_checkpoint_is_the_same_checkpoint(tmp_path):
    single = write_checkpoint(tmp_path / "single", PLAIN)
    sharded = shutil.copytree(single, tmp_path / "sharded")
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in shards.items():
        save_file({n: tensors[n] for n in part}, sharded / file)
    index = {"weight_map": {n: f for f, part in shards.items() for n in part}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    first, second = (
        stored(run(path, tmp_path / f"out-{path.name}", "mlx-fp16")[0].path)
        for path in (single, sharded)
    )
    assert first.keys() == second.keys()
    assert all(mx.array_equal(first[n], second[n]) for n in first)


def test_large_artefacts_are_written_in_shards(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("edge.formats.safetensors.SHARD_BYTES", 60_000)
    (made,) = run(tiny, tmp_path / "out", "mlx-fp16")
    shards = sorted(made.path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    ids = mx.array(token_ids(open_checkpoint(str(tiny)).config))
    sharded, whole = load_model(made.path, mx.float32), load_model(tiny, mx.float32)
    assert mx.abs(sharded(ids) - whole(ids)).max() < 0.02


def test_old_and_tied_checkpoints_convert(tmp_path):
    epoch = {k: v for k, v in PLAIN.items() if k not in ("layer_norm_eps", "partial_rotary_factor")}
    epoch |= {"model_type": "stablelm_epoch", "norm_eps": 1e-5, "rope_pct": 0.25}
    for name, raw in (("epoch", epoch), ("tied", CONFIGS["tied"])):
        path = write_checkpoint(tmp_path / name, raw)
        made = run(path, tmp_path / f"{name}-out", "mlx-fp16", "gguf-f16")
        assert load_model(made[0].path)
        assert json.loads((made[0].path / "config.json").read_text())["model_type"] == "stablelm"


@pytest.mark.parametrize(
    ("bad", "words"), [(1e6, "float16 cannot hold"), (np.nan, "not finite"), (np.inf, "not finite")]
)
def test_a_weight_that_cannot_be_stored_is_named(tmp_path, bad, words):
    path = with_weight(tmp_path / "large", 2.0**20)
    made = run(path, tmp_path / "bf16", "mlx-bf16", "gguf-bf16", "gguf-f32")
    tensor = stored(made[0].path)[UP_PROJ]
    assert (tensor.dtype, tensor[3, 5].item()) == (mx.bfloat16, 2.0**20)
    path = with_weight(tmp_path / "model", bad)
    for name in ("mlx-fp16", "mlx-int4", "gguf-f16"):
        with pytest.raises(EdgeError, match=rf"tensor model\.layers\.1\.mlp\.up_proj.*{words}"):
            run(path, tmp_path / "out", name)
    assert list((tmp_path / "out").iterdir()) == []


# --- kept or replaced


def test_an_artefact_is_kept_until_forced(tiny, tmp_path):
    out = tmp_path / "out"
    (first,) = run(tiny, out, "gguf-q8_0")
    assert [p.name for p in out.iterdir()] == ["gguf-q8_0.gguf"]  # no float file is left
    inode = first.path.stat().st_ino
    assert not first.kept
    assert run(tiny, out, "gguf-q8_0")[0].kept
    assert first.path.stat().st_ino == inode
    assert not run(tiny, out, "gguf-q8_0", force=True)[0].kept
    assert first.path.stat().st_ino != inode


@pytest.mark.parametrize("name", ["mlx-int4", "gguf-f32"])
def test_another_models_or_a_damaged_artefact_is_not_kept(tmp_path, name):
    out = tmp_path / "out"
    (made,) = run(write_checkpoint(tmp_path / "a", PLAIN, seed=0), out, name)
    other = write_checkpoint(tmp_path / "b", PLAIN, seed=7)
    with pytest.raises(EdgeError, match=r"from another checkpoint; replace it with .*--force"):
        run(other, out, name)
    run(other, out, name, force=True)
    assert run(other, out, name)[0].kept
    record = made.path / "edge.json" if made.path.is_dir() else made.path
    record.write_bytes(record.read_bytes()[:500])
    with pytest.raises(EdgeError, match="is not a whole artefact"):
        run(other, out, name)


def test_a_source_is_never_replaced_by_what_is_made_of_it(tiny, tmp_path):
    for source in run(tiny, tmp_path / "out", "mlx-int4", "gguf-q8_0"):
        before = file_bytes(source.path)
        with pytest.raises(EdgeError, match=r"is the source itself; choose another --out"):
            run(source.path, tmp_path / "out", source.recipe.name, force=True)
        assert file_bytes(source.path) == before


# --- failures


@pytest.mark.parametrize("name", ["mlx-fp16", "gguf-f16", "gguf-q8_0"])
def test_a_full_disk_is_one_sentence(tiny, tmp_path, name):
    """A real one, as far as the process can tell: no file may grow beyond 40 kB."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "from edge.cli.main import main\n"
        f"sys.exit(main(['convert', {str(tiny)!r}, '--to', {name!r}, '--out', 'out']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["mlx-fp16", "gguf-f16", "gguf-q8_0"])
def test_a_failure_leaves_nothing_and_keeps_the_old(tiny, tmp_path, monkeypatch, name):
    out = tmp_path / "out"
    run(tiny, out, name)
    before = sorted((p.name, file_bytes(p)) for p in out.iterdir())
    written = []

    def fill_up(self, name, encoded, last):
        written.append(name)
        if len(written) > 10:
            raise OSError(28, "No space left on device")
        real[type(self)](self, name, encoded, last)

    real = {writer: writer.append for writer in (MlxWriter, GgufWriter)}
    for writer in real:
        monkeypatch.setattr(writer, "append", fill_up)
    with pytest.raises(EdgeError, match="No space left on device"):
        run(tiny, out, name, force=True)
    assert sorted((p.name, file_bytes(p)) for p in out.iterdir()) == before


def test_an_interrupt_does_not_wait_for_the_digests_of_the_source(tiny, tmp_path, monkeypatch):
    read = []

    def interrupt(name, done):
        raise KeyboardInterrupt

    def stopped_digest(path, stopped):
        read.append(path)
        while not stopped():
            pass
        raise CancelledError

    monkeypatch.setattr("edge.convert.convert.file_sha256", stopped_digest)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path / "out", "mlx-fp16", progress=interrupt)
    assert len(read) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_goes_from_start_to_end(tiny, tmp_path):
    seen = {}
    run(
        tiny,
        tmp_path / "out",
        "mlx-int4",
        "gguf-q8_0",
        progress=lambda name, done: seen.setdefault(name, []).append(done),
    )
    assert seen.keys() == {"mlx-int4", "gguf-f16", "gguf-q8_0"}
    for values in seen.values():
        assert values == sorted(values)
        assert len(values) > 5
        assert values[-1] == 1.0

import json
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader

import edge
from edge.convert.artefacts.gguf import GgufWriter
from edge.convert.artefacts.mlx import MlxWriter
from edge.convert.artefacts.recipes import RECIPES, find_recipe
from edge.convert.artefacts.sizes import bits_per_weight, file_bytes
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.convert.targets import Options
from edge.errors import EdgeError
from edge.model.load import load_model
from edge.model.tensors import parameter_count
from tests.support.tiny import CONFIGS, PLAIN, token_ids, write_checkpoint


def run(path, out, *names, **options):
    recipes = [RECIPES[name] for name in names]
    checkpoint = open_checkpoint(str(path))
    return convert(checkpoint, recipes, out, lambda *_: None, Options(**options))


def field(path, key):
    found = GGUFReader(str(path)).get_field(key)
    return None if found is None else found.contents()


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", CONFIGS["stable-code"])


# --- what the artefacts are


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
    checkpoint = open_checkpoint("demo")
    stored = mx.load(str(demo_out / "mlx-fp16" / "model.safetensors"))
    assert stored.keys() == checkpoint.weights.shapes.keys()
    for name, array in stored.items():
        assert np.array_equal(np.array(array), checkpoint.weights.read(name).astype(np.float16))


def test_int4_weights_are_mlx_lms(demo_out, tmp_path):
    """The same bits that mlx-lm's own converter writes."""
    from mlx_lm.convert import convert as mlx_lm_convert

    peer = tmp_path / "peer"
    source = str(demo_out / "mlx-fp16")
    mlx_lm_convert(source, str(peer), quantize=True, q_bits=4, q_group_size=64, dtype="float16")
    ours = mx.load(str(demo_out / "mlx-int4" / "model.safetensors"))
    theirs = mx.load(str(peer / "model.safetensors"))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert np.array_equal(np.array(array), np.array(theirs[name])), name


def test_bits_per_weight(demo_out):
    parameters = parameter_count(open_checkpoint("demo").config)
    bits = {
        name: bits_per_weight(RECIPES[name].path_in(demo_out), parameters)
        for name in ("mlx-fp16", "mlx-int4", "gguf-f16", "gguf-q6_k", "gguf-q5_k_m")
    }
    assert bits["mlx-fp16"] == 16
    assert bits["mlx-int4"] == pytest.approx(4.5, abs=0.05)  # 4 + 32 bits per group of 64
    assert bits["gguf-f16"] == pytest.approx(16, abs=0.05)
    assert bits["gguf-q6_k"] == pytest.approx(6.5625, abs=0.05)
    assert 5.5 < bits["gguf-q5_k_m"] < bits["gguf-q6_k"]


def test_gguf_metadata_tells_llama_cpp_everything(demo_out):
    path = demo_out / "gguf-q6_k.gguf"
    assert field(path, "general.architecture") == "stablelm"
    assert field(path, "general.file_type") == 18
    assert field(path, "stablelm.rope.freq_base") == 1_000_000
    assert field(path, "stablelm.rope.dimension_count") == 16
    assert field(path, "stablelm.context_length") == 1024
    tokens = field(path, "tokenizer.ggml.tokens")
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
        assert tokens[field(path, f"tokenizer.ggml.{key}_token_id")] == token
    assert "<|im_start|>" in field(path, "tokenizer.chat_template")


def test_k_quants_have_their_types_and_no_fallback(demo_out):
    def types(name):
        return {t.tensor_type.name for t in GGUFReader(str(demo_out / name)).tensors}

    assert types("gguf-q6_k.gguf") == {"Q6_K", "F32"}
    assert types("gguf-q5_k_m.gguf") == {"Q5_K", "Q6_K", "F32"}


def test_a_sharded_checkpoint_is_the_same_checkpoint(tmp_path):
    from safetensors.numpy import load_file, save_file

    single = write_checkpoint(tmp_path / "single", PLAIN)
    sharded = tmp_path / "sharded"
    shutil.copytree(single, sharded)
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in shards.items():
        save_file({n: tensors[n] for n in part}, sharded / file)
    index = {"weight_map": {n: f for f, part in shards.items() for n in part}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in (single, sharded):
        run(path, tmp_path / f"out-{path.name}", "mlx-fp16")
    first, second = (
        mx.load(str(tmp_path / f"out-{n}" / "mlx-fp16" / "model.safetensors"))
        for n in ("single", "sharded")
    )
    assert first.keys() == second.keys()
    assert all(mx.array_equal(first[n], second[n]) for n in first)


def test_large_artefacts_are_written_in_shards(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("edge.formats.safetensors_writer.SHARD_BYTES", 60_000)
    (made,) = run(tiny, tmp_path / "out", "mlx-fp16")
    shards = sorted(made.path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    ids = mx.array(token_ids(open_checkpoint(str(tiny)).config))
    sharded, whole = load_model(made.path, mx.float32), load_model(tiny, mx.float32)
    assert mx.abs(sharded(ids) - whole(ids)).max() < 0.02


def test_old_and_tied_checkpoints_convert(tmp_path):
    epoch = {
        **{k: v for k, v in PLAIN.items() if k not in ("layer_norm_eps", "partial_rotary_factor")},
        "model_type": "stablelm_epoch",
        "norm_eps": 1e-5,
        "rope_pct": 0.25,
    }
    for name, raw in (("epoch", epoch), ("tied", CONFIGS["tied"])):
        path = write_checkpoint(tmp_path / name, raw)
        made = run(path, tmp_path / f"{name}-out", "mlx-fp16", "gguf-f16")
        assert load_model(made[0].path)
        assert json.loads((made[0].path / "config.json").read_text())["model_type"] == "stablelm"


# --- keeping, replacing, failing


def test_an_artefact_is_kept_until_forced(tiny, tmp_path):
    out = tmp_path / "out"
    (first,) = run(tiny, out, "gguf-f16")
    assert not first.kept
    stamp = first.path.stat().st_mtime_ns
    (second,) = run(tiny, out, "gguf-f16")
    assert second.kept
    assert second.path.stat().st_mtime_ns == stamp
    (third,) = run(tiny, out, "gguf-f16", force=True)
    assert not third.kept
    assert third.path.stat().st_mtime_ns != stamp


@pytest.mark.parametrize("name", ["mlx-int4", "gguf-f32"])
def test_another_models_artefact_is_never_taken_for_ours(tmp_path, name):
    out = tmp_path / "out"
    run(write_checkpoint(tmp_path / "a", PLAIN, seed=0), out, name)
    other = write_checkpoint(tmp_path / "b", PLAIN, seed=7)
    with pytest.raises(EdgeError, match=r"from another checkpoint; replace it with .*--force"):
        run(other, out, name)
    run(other, out, name, force=True)
    assert run(other, out, name)[0].kept


def test_a_damaged_artefact_is_not_called_foreign(tiny, tmp_path):
    (made,) = run(tiny, tmp_path / "out", "gguf-f16")
    made.path.write_bytes(made.path.read_bytes()[:500])
    with pytest.raises(EdgeError, match="is no whole artefact"):
        run(tiny, tmp_path / "out", "gguf-f16")


@pytest.mark.parametrize("name", ["mlx-fp16", "gguf-f16", "gguf-q8_0"])
def test_a_full_disk_is_a_sentence(tiny, tmp_path, name):
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

    def fill_up(self, name, encoded):
        written.append(name)
        if len(written) > 10:
            raise OSError(28, "No space left on device")
        real[type(self)](self, name, encoded)

    real = {writer: writer.append for writer in (MlxWriter, GgufWriter)}
    for writer in real:
        monkeypatch.setattr(writer, "append", fill_up)
    with pytest.raises(EdgeError, match="No space left on device"):
        run(tiny, out, name, force=True)
    assert sorted((p.name, file_bytes(p)) for p in out.iterdir()) == before


def test_quantising_leaves_no_intermediate_file(tiny, tmp_path):
    out = tmp_path / "out"
    run(tiny, out, "gguf-q8_0")
    assert [p.name for p in out.iterdir()] == ["gguf-q8_0.gguf"]


@pytest.mark.parametrize(
    ("bad", "words"), [(1e6, "float16 cannot hold"), (np.nan, "not finite"), (np.inf, "not finite")]
)
def test_a_weight_that_cannot_be_stored_is_named(tmp_path, bad, words):
    from safetensors.numpy import load_file, save_file

    path = write_checkpoint(tmp_path / "model", PLAIN)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = bad
    save_file(tensors, path / "model.safetensors")
    for name in ("mlx-fp16", "mlx-int4", "gguf-f16"):
        with pytest.raises(EdgeError, match=rf"tensor model\.layers\.1\.mlp\.up_proj.*{words}"):
            run(path, tmp_path / "out", name)
    assert list((tmp_path / "out").iterdir()) == []


def test_bfloat16_holds_what_float16_cannot(tmp_path):
    from safetensors.numpy import load_file, save_file

    path = write_checkpoint(tmp_path / "model", PLAIN)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 2.0**20
    save_file(tensors, path / "model.safetensors")
    run(path, tmp_path / "out", "mlx-bf16", "gguf-bf16", "gguf-f32")
    stored = mx.load(str(tmp_path / "out" / "mlx-bf16" / "model.safetensors"))
    assert stored["model.layers.1.mlp.up_proj.weight"].dtype == mx.bfloat16
    assert stored["model.layers.1.mlp.up_proj.weight"][3, 5].item() == 2.0**20


def test_progress_goes_from_start_to_end(tiny, tmp_path):
    seen = {}
    recipes = [find_recipe(n) for n in ("mlx-int4", "gguf-q8_0")]
    convert(
        open_checkpoint(str(tiny)),
        recipes,
        tmp_path / "out",
        lambda name, done: seen.setdefault(name, []).append(done),
    )
    assert seen.keys() == {"mlx-int4", "gguf-f16", "gguf-q8_0"}
    for values in seen.values():
        assert values == sorted(values)
        assert len(values) > 5
        assert values[-1] == 1.0


def test_an_unknown_artefact_lists_the_known():
    with pytest.raises(EdgeError, match="mlx-int4"):
        find_recipe("mlx-int7")


def test_an_interrupt_does_not_wait_for_the_digests_of_the_source(tiny, tmp_path, monkeypatch):
    finished = []

    def pieces(path):
        for _ in range(2_000_000):
            yield b"as long as many gigabytes"
        finished.append(path)

    def interrupt(name, done):
        raise KeyboardInterrupt

    monkeypatch.setattr("edge.convert.artefacts.manifest._pieces", pieces)
    recipes = [RECIPES["mlx-fp16"]]
    with pytest.raises(KeyboardInterrupt):
        convert(open_checkpoint(str(tiny)), recipes, tmp_path / "out", interrupt)
    assert finished == []
    assert list((tmp_path / "out").iterdir()) == []

"""The estimate against what MLX really takes, and the refusal."""

import json
import struct

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from edge.device.memory import MemoryRoom
from edge.errors import EdgeError
from edge.generate import decode
from edge.generate.decode import PREFILL_TOKENS, generate_tokens
from edge.model import memory
from edge.model.kv_cache import cache_bytes, make_cache
from edge.model.load import compute_dtype, load_model, read_directory
from edge.model.memory import FORCE, HEADROOM_BYTES
from tests.support.tiny import CONFIGS, LLAMA, LLAMA_CONFIGS, PLAIN, write_checkpoint

DTYPES = [mx.float32, mx.float16]


def required_bytes(path, *args, **kwargs):
    return memory.required_bytes(path, read_directory(path)[1], *args, **kwargs)


def check_fits(path, *args):
    return memory.check_fits(path, read_directory(path)[1], *args)


def taken(path, dtype):
    """A model, what it holds once loaded, and the most it held before, as MLX counts them."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = load_model(path, dtype)
    return model, mx.get_active_memory() - before, mx.get_peak_memory() - before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("artefact", ["mlx-fp16", "mlx-int4"])
def test_loading_is_bounded_tightly(demo_out, artefact, dtype):
    need = required_bytes(demo_out / artefact, dtype, 0)
    _model, held, peak = taken(demo_out / artefact, dtype)
    assert need.weights_bytes <= held <= need.weights_bytes * 1.01
    assert peak <= (need.weights_bytes + need.loading_bytes) * 1.01
    assert need.weights_bytes + need.loading_bytes <= 1.4 * peak
    assert need.quantised == (artefact == "mlx-int4")


@pytest.mark.parametrize("raw", [*CONFIGS.values(), *LLAMA_CONFIGS.values()])
def test_weights_of_every_shape_are_counted_to_the_byte(raw, tmp_path):
    path = write_checkpoint(tmp_path / "m", raw)
    for dtype in DTYPES:
        arrays = tree_flatten(load_model(path, dtype).parameters())
        assert required_bytes(path, dtype, 0).weights_bytes == sum(a.nbytes for _, a in arrays)


def test_what_loading_drops_is_not_counted(tmp_path):
    path = write_checkpoint(tmp_path / "m", CONFIGS["tied"])
    plain = required_bytes(path, mx.float16, 0).weights_bytes
    extra = {
        "lm_head.weight": mx.zeros((512, 64)),
        "model.layers.0.self_attn.rotary_emb.inv_freq": mx.zeros((64,)),
    }
    mx.save_safetensors(str(path / "more.safetensors"), extra)
    assert required_bytes(path, mx.float16, 0).weights_bytes == plain


def test_without_a_dtype_nothing_is_cast(demo_out):
    stored, half = (required_bytes(demo_out / "mlx-fp16", d, 0) for d in (None, mx.float16))
    assert stored == half


@pytest.mark.parametrize("kv_bits", [None, 4, 8])
@pytest.mark.parametrize("name", ["stable-code", "stablelm-2-12b", "code-llama"])
def test_the_cache_is_bounded_for_every_head(name, kv_bits, tmp_path):
    raw = {**CONFIGS, **LLAMA_CONFIGS}[name] | {"max_position_embeddings": 4096}
    path = write_checkpoint(tmp_path / "m", raw)
    model = load_model(path)
    for tokens in (1, 1200):
        cache = make_cache(model, kv_bits)
        list(generate_tokens(model, [1] * (tokens - 1) or [1], cache=cache, max_tokens=2))
        held = cache_bytes(cache)
        need = required_bytes(path, compute_dtype(), tokens, kv_bits).cache_bytes
        assert held <= need and (tokens == 1 or need <= 1.3 * held)


@pytest.mark.parametrize("part", [PREFILL_TOKENS, 256])
def test_a_prompt_is_bounded(demo_out, part, monkeypatch):
    assert memory.PREFILL_TOKENS == PREFILL_TOKENS
    monkeypatch.setattr(decode, "PREFILL_TOKENS", part)
    path, tokens = demo_out / "mlx-fp16", 700
    need = required_bytes(path, compute_dtype(), tokens + 1, prefill_tokens=part)
    model = load_model(path)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    prompt = [7 * i % 1000 for i in range(tokens)]
    list(generate_tokens(model, prompt, max_tokens=1))
    peak = mx.get_peak_memory() - before
    assert peak <= need.cache_bytes + need.working_bytes <= 3 * peak


def test_no_tensor_is_read(tmp_path):
    """A sparse file of 2 TB: its header is all there is to it."""
    path = write_checkpoint(tmp_path / "m", PLAIN)
    shape, end = [1 << 20, 1 << 20], 2 << 40
    tensor = {"dtype": "F16", "shape": shape, "data_offsets": [0, end]}
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    assert required_bytes(path, mx.float32, 0).weights_bytes == 2 * end


def test_missing_files_are_named(tmp_path):
    path = write_checkpoint(tmp_path / "m", PLAIN)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.st"}}))
    with pytest.raises(EdgeError, match=r"holds no model-2\.st"):
        required_bytes(path, None, 0)
    index.unlink()
    (path / "model.safetensors").unlink()
    with pytest.raises(EdgeError, match=r"holds no \*\.safetensors"):
        required_bytes(path, None, 0)


def test_gptq_weights_are_refused(tmp_path):
    codes = {"model.layers.0.self_attn.v_proj.qweight": mx.zeros((8, 64), dtype=mx.int32)}
    path = write_checkpoint(tmp_path / "m", LLAMA, tensors=codes)
    with pytest.raises(EdgeError, match="holds GPTQ weights; convert it"):
        required_bytes(path, None, 0)


# --- the check


@pytest.fixture
def room(monkeypatch):
    """Have so much memory."""
    monkeypatch.delenv(FORCE, raising=False)

    def have(free, most):
        found = MemoryRoom(free, most, "memory")
        monkeypatch.setattr(memory, "available_bytes", lambda: found)

    return have


def test_what_fits_gives_no_warning(demo_out, room):
    room(1 << 40, 1 << 40)
    need, warning = check_fits(demo_out / "mlx-int4", compute_dtype(), 512)
    assert warning is None and need.total_bytes > HEADROOM_BYTES


def test_what_can_never_fit_is_refused_with_the_numbers(demo_out, room):
    room(40_000_000, 41_000_000)
    need = required_bytes(demo_out / "mlx-fp16", mx.float32, 1000)
    words = [
        f"needs {need.total_bytes / 1e6:.0f} MB",
        "22 MB of weights",
        "for 1000 tokens",
        "40 MB of memory are available",
        "mlx-int4 or a shorter context",
        f"{FORCE}=1",
    ]
    with pytest.raises(EdgeError) as error:
        check_fits(demo_out / "mlx-fp16", mx.float32, 1000)
    assert all(word in str(error.value) for word in words)
    with pytest.raises(EdgeError, match="choose a smaller model, or set"):
        check_fits(demo_out / "mlx-int4", mx.float32, 0)


def test_where_the_system_can_make_room_it_is_a_warning(demo_out, room):
    room(40_000_000, 1 << 40)
    _, warning = check_fits(demo_out / "mlx-fp16", mx.float32, 0)
    assert "40 MB of memory are available" in warning and FORCE not in warning


@pytest.mark.parametrize(("value", "refused"), [("1", False), ("0", True), ("", True)])
def test_a_refusal_can_be_overruled(demo_out, room, monkeypatch, value, refused):
    room(1, 1)
    monkeypatch.setenv(FORCE, value)
    if refused:
        with pytest.raises(EdgeError):
            check_fits(demo_out / "mlx-int4", mx.float32, 0)
    else:
        assert check_fits(demo_out / "mlx-int4", mx.float32, 0)[1]


def test_the_most_is_either_loading_or_running(demo_out):
    alone, deep = (required_bytes(demo_out / "mlx-fp16", mx.float32, n) for n in (0, 4000))
    assert alone.total_bytes == alone.weights_bytes + alone.loading_bytes + HEADROOM_BYTES
    assert deep.total_bytes == deep.running_bytes > alone.total_bytes

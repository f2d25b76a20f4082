"""The estimate against what MLX really takes, and the refusal."""

import json
import re
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


def taken(call):
    """What a call gives, what that holds, and the most held before, in bytes as MLX counts."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    result = call()
    return result, mx.get_active_memory() - before, mx.get_peak_memory() - before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("artefact", ["mlx-fp16", "mlx-int4"])
def test_loading_is_bounded_tightly(demo_out, artefact, dtype):
    need = required_bytes(demo_out / artefact, dtype, 0)
    _model, held, peak = taken(lambda: load_model(demo_out / artefact, dtype))
    assert need.weights_bytes <= held <= need.weights_bytes * 1.01
    assert peak <= (need.weights_bytes + need.loading_bytes) * 1.01
    assert need.weights_bytes + need.loading_bytes <= 1.4 * peak


@pytest.mark.parametrize("raw", [*CONFIGS.values(), *LLAMA_CONFIGS.values()])
def test_weights_of_every_shape_are_counted_to_the_byte(raw, tmp_path):
    path = write_checkpoint(tmp_path / "m", raw)
    for dtype in DTYPES:
        arrays = tree_flatten(load_model(path, dtype).parameters())
        assert required_bytes(path, dtype, 0).weights_bytes == sum(a.nbytes for _, a in arrays)


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
    prompt = [7 * i % 1000 for i in range(tokens)]
    _, _, peak = taken(lambda: list(generate_tokens(model, prompt, max_tokens=1)))
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


def test_files_that_are_missing_or_of_gptq_are_refused(tmp_path):
    codes = {"model.layers.0.self_attn.v_proj.qweight": mx.zeros((8, 64), dtype=mx.int32)}
    path = write_checkpoint(tmp_path / "m", LLAMA, tensors=codes)
    with pytest.raises(EdgeError, match="has GPTQ weights; convert it"):
        required_bytes(path, mx.float32, 0)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.st"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EdgeError, match=r"has no model-2\.st"):
        required_bytes(path, mx.float32, 0)


NUMBERS = (
    r"needs \d+ MB \(22 MB of weights, \d+ MB of cache for 1000 tokens\), and 40 MB of memory "
)
SHORT = NUMBERS + "are available; close programs, choose a smaller model"


@pytest.mark.parametrize(
    ("free", "most", "force", "warned", "refused"),
    [
        (1 << 40, 1 << 40, "", None, None),
        (40_000_000, 1 << 40, "", SHORT, None),
        (40_000_000, 41_000_000, "1", SHORT, None),
        (40_000_000, 41_000_000, "0", None, f"{SHORT}.* or set {FORCE}=1"),
        (40_000_000, 41_000_000, "", None, f"{SHORT}.* or set {FORCE}=1"),
    ],
)
def test_a_shortage_is_a_warning_or_refused(
    demo_out, free, most, force, warned, refused, monkeypatch
):
    monkeypatch.setattr(memory, "available_bytes", lambda: MemoryRoom(free, most, "memory"))
    monkeypatch.setenv(FORCE, force)
    if refused:
        with pytest.raises(EdgeError, match=refused):
            check_fits(demo_out / "mlx-fp16", mx.float32, 1000)
        return
    need, warning = check_fits(demo_out / "mlx-fp16", mx.float32, 1000)
    assert need.total_bytes == need.running_bytes > HEADROOM_BYTES
    assert re.search(warned, warning) if warned else warning is None

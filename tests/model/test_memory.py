"""The estimated memory against MLX's measured memory, and the check that it fits."""

import gc
import re

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from edge.device.memory import MemoryRoom
from edge.errors import EdgeError
from edge.generate.decode import PREFILL_TOKENS, generate_tokens
from edge.model import memory
from edge.model.kv_cache import cache_bytes, make_cache
from edge.model.load import compute_dtype, load_model, read_directory
from edge.model.memory import FORCE, HEADROOM_BYTES
from tests.support.tiny import CONFIGS, LLAMA, LLAMA_CONFIGS, write_checkpoint

DTYPES = [mx.float32, mx.float16]


def required_bytes(path, *args, **kwargs):
    return memory.required_bytes(path, read_directory(path)[1], *args, **kwargs)


def taken(call):
    """Result of a call, the memory it keeps and its peak, in bytes as MLX counts."""
    gc.collect()  # what earlier tests left must not be freed during the call
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    result = call()
    return result, mx.get_active_memory() - before, mx.get_peak_memory() - before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("artefact", ["mlx-fp16", "mlx-int4"])
def test_estimate_of_loading_is_tight(demo_out, artefact, dtype):
    need = required_bytes(demo_out / artefact, dtype, 0)
    _model, kept, peak = taken(lambda: load_model(demo_out / artefact, dtype))
    assert need.weights_bytes <= kept <= need.weights_bytes * 1.01
    assert peak / 1.01 <= need.weights_bytes + need.loading_bytes <= 1.4 * peak


@pytest.mark.parametrize("raw", [*CONFIGS.values(), *LLAMA_CONFIGS.values()])
def test_weights_are_counted_to_the_byte(raw, tmp_path):
    path = write_checkpoint(tmp_path / "m", raw)
    for dtype in DTYPES:
        arrays = tree_flatten(load_model(path, dtype).parameters())
        assert required_bytes(path, dtype, 0).weights_bytes == sum(a.nbytes for _, a in arrays)


@pytest.mark.parametrize("kv_bits", [None, 4, 8])
@pytest.mark.parametrize("name", ["stable-code", "stablelm-2-12b", "code-llama"])
def test_estimate_of_the_cache_is_an_upper_bound(name, kv_bits, tmp_path):
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
def test_estimate_of_a_prompt_is_an_upper_bound(demo_out, part):
    assert memory.PREFILL_TOKENS == PREFILL_TOKENS
    path, tokens = demo_out / "mlx-fp16", 700
    need = required_bytes(path, compute_dtype(), tokens + 1, prefill_tokens=part)
    model = load_model(path)
    prompt = [7 * i % 1000 for i in range(tokens)]
    how = {"max_tokens": 1, "prefill_tokens": part}
    _, _, peak = taken(lambda: list(generate_tokens(model, prompt, **how)))
    assert peak <= need.cache_bytes + need.working_bytes <= 3 * peak


def test_gptq_weights_are_refused(tmp_path):
    codes = {"model.layers.0.self_attn.v_proj.qweight": mx.zeros((8, 64), dtype=mx.int32)}
    path = write_checkpoint(tmp_path / "m", LLAMA, tensors=codes)
    with pytest.raises(EdgeError, match="has GPTQ weights; convert it"):
        required_bytes(path, mx.float32, 0)


SHORT = (
    r"needs \d+ MB \(22 MB of weights, \d+ MB of cache for 1000 tokens\), and 40 MB of memory "
    "are available; close programs, choose a smaller model"
)


def test_a_shortage_is_a_warning_if_memory_can_be_freed_else_an_error(demo_out, monkeypatch):
    def check(now_bytes, most_bytes, force=""):
        room = MemoryRoom(now_bytes, most_bytes, "memory")
        monkeypatch.setattr(memory, "available_bytes", lambda: room)
        monkeypatch.setenv(FORCE, force)
        path = demo_out / "mlx-fp16"
        return memory.check_fits(path, read_directory(path)[1], mx.float32, 1000)

    need, warning = check(1 << 40, 1 << 40)
    assert need.total_bytes == need.running_bytes > HEADROOM_BYTES and warning is None
    for room in ((40_000_000, 1 << 40), (40_000_000, 41_000_000, "1")):
        assert re.search(SHORT, check(*room)[1])
    with pytest.raises(EdgeError, match=f"{SHORT}.* or set {FORCE}=1"):
        check(40_000_000, 41_000_000)

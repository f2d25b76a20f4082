"""Caches as computed, in fewer bits and mlx-lm's rotating ones, for every head of the family."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache as MlxLmCache
from mlx_lm.models.cache import (
    RotatingKVCache,
    load_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)

from edge.model.kv_cache import STEP_POSITIONS, KVCache, make_cache
from edge.model.stablelm import FUSED_DECODE_WIDTHS
from tests.support.tiny import CONFIGS, LLAMA_CONFIGS, PLAIN, TWO_HEADS, tiny_model, token_ids

ALL = CONFIGS | LLAMA_CONFIGS
# The family's heads: 16 (tiny), 64 (StableLM 2 1.6B), 80, 160 (12B, grouped), 128 (Llama).
HEADS = {
    "tiny": PLAIN,
    "stablelm-2-1.6b": {**PLAIN, "hidden_size": 128, **TWO_HEADS, "use_qkv_bias": True},
    **{name: ALL[name] for name in ("stable-code", "stablelm-2-12b", "code-llama")},
}
# Relative error of the logits (norm of the difference); the weights are random.
# Measured: 0.0028 to 0.0035 in 8 bits and 0.048 to 0.061 in 4.
BOUNDS = {8: 0.01, 4: 0.15}
WINDOW, KEPT = 12, 4  # mlx-lm's rotating cache holds so many positions, the first ones among them


def run(model, cache, chunks=(24, 1, 5, 9, 1)):
    """Logits of prefill by many, few and single tokens: each has its own way to attend."""
    ids = mx.array(token_ids(model.config, sum(chunks)))
    ends = np.cumsum(chunks)
    parts = [model(ids[:, e - n : e], cache)[0] for n, e in zip(chunks, ends, strict=True)]
    return np.array(mx.concatenate(parts))


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(params=[(), FUSED_DECODE_WIDTHS["metal"]], ids=["", "padded"])
def pad(request, monkeypatch):
    """Heads as they are, and padded as on Metal, wherever this runs."""
    for backend in FUSED_DECODE_WIDTHS:
        monkeypatch.setitem(FUSED_DECODE_WIDTHS, backend, request.param)


@pytest.mark.parametrize("bits", BOUNDS)
@pytest.mark.parametrize("name", HEADS)
def test_a_quantised_cache_changes_little(name, bits, pad):
    model = tiny_model(HEADS[name])
    found = run(model, make_cache(model, kv_bits=bits))
    assert 0 < error(found, run(model, make_cache(model))) < BOUNDS[bits]
    # Above FEW_QUERIES the cache is dequantised first; rounding may move a code by one step.
    one_by_one = run(model, make_cache(model, kv_bits=bits), (1,) * 40)
    assert error(one_by_one, found) < BOUNDS[bits] / 10


@pytest.mark.parametrize("bits", [None, 8])
def test_a_trimmed_cache_goes_on(bits):
    model = tiny_model(CONFIGS["stable-code"])
    cache = make_cache(model, kv_bits=bits)
    expected = run(model, cache)
    assert trim_prompt_cache(cache, 10) == 10
    again = np.array(model(mx.array(token_ids(model.config, 40)[:, 30:]), cache)[0])
    assert error(again, expected[30:]) < 1e-3


def test_a_cache_saved_by_mlx_lm_goes_on(tmp_path):
    model, file = tiny_model(CONFIGS["stable-code"]), str(tmp_path / "cache.safetensors")
    ids, cache, restored = mx.array(token_ids(model.config, 9)), make_cache(model), KVCache()
    model(ids[:, :8], cache)
    save_prompt_cache(file, cache, {"model": "tiny"})
    loaded, metadata = load_prompt_cache(file, return_metadata=True)
    restored.state = loaded[0].state
    expected = model(ids[:, 8:], cache)
    assert metadata == {"model": "tiny"} and restored.offset == 8
    assert mx.array_equal(model(ids[:, 8:], [restored, *loaded[1:]]), expected)


class Windowed(KVCache):
    """Holds everything, and lets a single query see what a rotating cache would still hold."""

    def make_mask(self, n, **_):
        position = self.offset + mx.arange(n)[:, None]
        others = mx.arange(self.offset + n)[None]
        recent = others > position - (WINDOW - KEPT)
        return (others <= position) & (recent | (others < KEPT))


def test_a_full_rotating_cache_sees_the_first_and_the_last(pad):
    """As a caller of `edge.stream_generate` may bring them."""
    model = tiny_model(CONFIGS["stable-code"])
    rotating = [RotatingKVCache(max_size=WINDOW, keep=KEPT) for _ in model.layers]
    found = run(model, rotating, (1,) * 60)
    expected = run(model, [Windowed() for _ in model.layers], (1,) * 60)
    assert error(found, expected) < 1e-5
    assert error(found, run(model, make_cache(model), (1,) * 60)) > 0.01


def entries(draw, positions):
    """Keys and values (1, 2, positions, 4 and 6) of small numbers."""
    rng = np.random.RandomState(draw)
    return [mx.array(rng.randint(-9, 9, (1, 2, positions, w)).astype(np.float32)) for w in (4, 6)]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 700) | st.integers(-600, -1), max_size=12))
def test_the_plain_cache_is_mlx_lms(steps):
    """Steps: so many positions more, or so many trimmed."""
    ours, theirs, most = KVCache(), MlxLmCache(), 0
    for draw, step in enumerate(steps):
        if step < 0:
            assert ours.trim(-step) == theirs.trim(-step)
            continue
        found, expected = (c.update_and_fetch(*entries(draw, step)) for c in (ours, theirs))
        for a, b in zip(found, expected, strict=True):
            assert mx.array_equal(a, b)
        most = max(most, ours.offset)  # trimming gives no memory back
        assert ours.keys.shape[2] <= most * 1.125 + STEP_POSITIONS
    assert ours.offset == theirs.offset

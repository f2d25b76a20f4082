"""KV caches as computed, quantised, and mlx-lm's rotating one, for all head sizes of the family."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import cache as mlx_lm_cache

from edge.model.kv_cache import STEP_POSITIONS, KVCache, make_cache
from edge.model.stablelm import FUSED_DECODE_WIDTHS
from tests.support.tiny import CONFIGS, LLAMA_CONFIGS, PLAIN, TWO_HEADS, tiny_model, token_ids

ALL = CONFIGS | LLAMA_CONFIGS
# Head sizes: 16 (tiny), 64 (StableLM 2 1.6B), 80, 160 (12B, grouped), 128 (Llama).
HEADS = {
    "tiny": PLAIN,
    "stablelm-2-1.6b": {**PLAIN, "hidden_size": 128, **TWO_HEADS, "use_qkv_bias": True},
    **{name: ALL[name] for name in ("stable-code", "stablelm-2-12b", "code-llama")},
}
# Relative error of the logits with random weights; measured: 0.0028 to 0.0035 and 0.048 to 0.061.
BOUNDS = {8: 0.01, 4: 0.15}
WINDOW, KEPT = 12, 4  # positions in mlx-lm's rotating cache, and first ones among them


def run(model, cache, chunks=(24, 1, 5, 9, 1)):
    """Logits of chunks of many, few and single tokens, whose attention differs."""
    ids = mx.array(token_ids(model.config, sum(chunks)))
    ends = np.cumsum(chunks)
    parts = [model(ids[:, e - n : e], cache)[0] for n, e in zip(chunks, ends, strict=True)]
    return np.array(mx.concatenate(parts))


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(params=[(), FUSED_DECODE_WIDTHS["metal"]], ids=["", "padded"])
def pad(request, monkeypatch):
    """Unpadded heads, and heads padded as on Metal."""
    for backend in FUSED_DECODE_WIDTHS:
        monkeypatch.setitem(FUSED_DECODE_WIDTHS, backend, request.param)


@pytest.mark.parametrize("bits", BOUNDS)
@pytest.mark.parametrize("name", HEADS)
def test_a_quantised_cache_changes_logits_little(name, bits, pad):
    model = tiny_model(HEADS[name])
    found = run(model, make_cache(model, kv_bits=bits))
    assert 0 < error(found, run(model, make_cache(model))) < BOUNDS[bits]
    # Up to FEW_QUERIES codes are used directly; rounding may move one by one step.
    one_by_one = run(model, make_cache(model, kv_bits=bits), (1,) * 40)
    assert error(one_by_one, found) < BOUNDS[bits] / 10


@pytest.mark.parametrize("bits", [None, 8])
def test_a_cache_continues_after_trimming_and_after_saving(bits, tmp_path):
    model, file = tiny_model(CONFIGS["stable-code"]), str(tmp_path / "cache.safetensors")
    cache = make_cache(model, kv_bits=bits)
    expected = run(model, cache)[30:]
    assert mlx_lm_cache.trim_prompt_cache(cache, 10) == 10
    mlx_lm_cache.save_prompt_cache(file, cache)
    for continued in (cache, mlx_lm_cache.load_prompt_cache(file)):
        found = np.array(model(mx.array(token_ids(model.config, 40)[:, 30:]), continued)[0])
        assert error(found, expected) < 1e-3


class Windowed(KVCache):
    """Keeps all positions, but a query sees only those that a rotating cache would keep."""

    def make_mask(self, n, **_):
        position = self.offset + mx.arange(n)[:, None]
        others = mx.arange(self.offset + n)[None]
        recent = others > position - (WINDOW - KEPT)
        return (others <= position) & (recent | (others < KEPT))


def test_a_full_rotating_cache_has_the_first_and_last_positions(pad):
    model = tiny_model(CONFIGS["stable-code"])
    rotating = [mlx_lm_cache.RotatingKVCache(max_size=WINDOW, keep=KEPT) for _ in model.layers]
    found = run(model, rotating, (1,) * 60)
    expected = run(model, [Windowed() for _ in model.layers], (1,) * 60)
    assert error(found, expected) < 1e-5
    assert error(found, run(model, make_cache(model), (1,) * 60)) > 0.01


@settings(max_examples=40)
@given(st.lists(st.integers(1, 700) | st.integers(-600, -1), max_size=12))
def test_the_plain_cache_behaves_as_mlx_lms(steps):
    """Positive steps add positions, negative ones trim."""
    ours, theirs, longest = KVCache(), mlx_lm_cache.KVCache(), 0
    for step in steps:
        if step < 0:
            assert ours.trim(-step) == theirs.trim(-step)
            continue
        new = [mx.random.normal((1, 2, step, width)) for width in (4, 6)]
        found, expected = (cache.update_and_fetch(*new) for cache in (ours, theirs))
        assert all(mx.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        longest = max(longest, ours.offset)  # trimming frees no memory
        assert ours.keys.shape[2] <= longest * 1.125 + STEP_POSITIONS
    assert ours.offset == theirs.offset

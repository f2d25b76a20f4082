"""One position's norms and rotations, compiled on a CPU, are those of MLX's own functions."""

import mlx.core as mx
import pytest
from mlx import nn

from edge.model import stablelm
from edge.model.stablelm import LayerNorm, PerHeadLayerNorm, RMSNorm, RotaryEmbedding


@pytest.fixture(params=["cpu", "metal"])
def backend(request, monkeypatch):
    """Compiled, and as a GPU has it."""
    monkeypatch.setattr(stablelm, "current_backend", lambda: request.param)


@pytest.mark.parametrize("dims", [16, 20, 64])
@pytest.mark.parametrize("base", [10_000.0, 1_000_000.0])
def test_rotation(dims, base, backend):
    rope = RotaryEmbedding(dims, base)
    for length in (1, 5):
        x = mx.random.normal((2, 3, length, 64))
        for offset in (0, 1, 1, 700, 3):  # again, and back
            expected = mx.fast.rope(x, dims, traditional=False, base=base, scale=1.0, offset=offset)
            assert mx.allclose(rope(x, offset), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_rotation_keeps_half_precision(dtype, backend):
    x = mx.random.normal((1, 3, 1, 64)).astype(dtype)
    expected = mx.fast.rope(x, 16, traditional=False, base=10_000.0, scale=1.0, offset=7)
    found = RotaryEmbedding(16, 10_000.0)(x, 7)
    assert found.dtype == dtype and mx.allclose(found, expected, rtol=0, atol=2e-2)


def test_rotation_of_a_batch_whose_sequences_are_at_positions_of_their_own(backend):
    """As mlx-lm's caches of batches have it: an array, which they also change in place."""
    rope, x, offset = (
        RotaryEmbedding(16, 10_000.0),
        mx.random.normal((2, 3, 1, 64)),
        mx.array([3, 9]),
    )
    for _ in range(2):
        expected = mx.fast.rope(x, 16, traditional=False, base=10_000.0, scale=1.0, offset=offset)
        assert mx.allclose(rope(x, offset), expected, rtol=0, atol=1e-5)
        offset += 1


@pytest.mark.parametrize("length", [1, 5])
def test_norms(length, backend):
    x = 3 + mx.random.normal((1, length, 32))
    ours, theirs = LayerNorm(32, eps=1e-5), nn.LayerNorm(32, eps=1e-5)
    ours.weight = theirs.weight = mx.random.normal((32,))
    ours.bias = theirs.bias = mx.random.normal((32,))
    assert mx.allclose(ours(x), theirs(x), rtol=0, atol=1e-5)
    ours.weight = theirs.weight = 2 * ours.weight  # nothing of it is compiled in
    assert mx.allclose(ours(x), theirs(x), rtol=0, atol=1e-5)
    assert mx.allclose(RMSNorm(32)(x), nn.RMSNorm(32)(x), rtol=0, atol=1e-5)
    heads = PerHeadLayerNorm(4, 8, 1e-5)
    heads.weight = mx.random.normal((4, 8))
    expected = mx.fast.layer_norm(x.reshape(1, length, 4, 8), None, None, 1e-5) * heads.weight
    assert mx.allclose(heads(x.reshape(1, length, 4, 8)), expected, rtol=0, atol=1e-5)

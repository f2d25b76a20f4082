"""Products on a Linux CPU: `cpu_blas.c` against numpy in float64, and linear layers on it."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx import nn
from mlx.utils import tree_flatten

from edge.linux_cpu import uses_openblas
from edge.model import cpu_linear
from edge.model.cpu_linear import use_blas

pytestmark = pytest.mark.skipif(
    not uses_openblas(), reason="MLX has another BLAS here: edge doctor says why"
)
SIZES = st.integers(1, 70)
ROUNDING = 1e-6  # of float32, relative to the largest sum


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def close(found, exact, scale):
    return np.abs(np.array(found) - exact).max() <= ROUNDING * scale


@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.integers(1, 3))
def test_products_of_every_shape_and_layout(m, n, k, a_transposed, b_transposed, batch):
    a, b = normal(batch, m, k), normal(batch, k, n)
    left = mx.array(a.swapaxes(1, 2)).swapaxes(1, 2) if a_transposed else mx.array(a)
    right = mx.array(b.swapaxes(1, 2)).swapaxes(1, 2) if b_transposed else mx.array(b)
    exact = a.astype(np.float64) @ b
    scale = (np.abs(a) @ np.abs(b)).max()
    assert close(left @ right, exact, scale)
    shift, factor = normal(batch, m, n), 0.5
    for beta in (0.0, 1.0, 2.0):
        found = mx.addmm(mx.array(shift), left, right, alpha=factor, beta=beta)
        assert close(found, factor * exact + beta * shift, scale + 2 * np.abs(shift).max())


class Net(nn.Module):
    """A quantised matrix and a quantised table."""

    def __init__(self, inputs, outputs, bias, how):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.table = nn.Embedding(outputs, inputs)
        self.linear.weight = mx.array(normal(outputs, inputs))
        self.table.weight = mx.array(normal(inputs, outputs).T)
        nn.quantize(self, **how)


def pair(inputs, outputs, bias, how):
    """The same layers as MLX computes them and as ours."""
    nets = [Net(inputs, outputs, bias, how) for _ in range(2)]
    nets[1].update(nets[0].parameters())
    use_blas(nets[1])
    return nets


@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from([(4, 32), (4, 64), (4, 128), (8, 64), (2, 32)]),
    st.sampled_from([1, 2, 3, 7, 8, 50]),
    st.booleans(),
)
def test_quantised_layers_compute_what_mlx_does(groups, outputs, how, rows, bias):
    bits, group_size = how
    theirs, ours = pair(
        groups * group_size, outputs, bias, {"bits": bits, "group_size": group_size}
    )
    for (name, a), (other, b) in zip(
        tree_flatten(theirs.parameters()), tree_flatten(ours.parameters()), strict=True
    ):
        assert name == other and mx.array_equal(a, b)
    x = mx.array(normal(2, rows, groups * group_size))
    scale = float(mx.abs(theirs.linear(x)).max()) + groups * group_size
    assert close(ours.linear(x), np.array(theirs.linear(x)), scale)
    assert close(ours.linear(x[:1, :1]), np.array(theirs.linear(x[:1, :1])), scale)
    assert close(ours.table.as_linear(x), np.array(theirs.table.as_linear(x)), scale)
    for ids in (mx.array([0, outputs - 1]), mx.array([outputs - 1]), mx.array([[0]])):
        assert mx.allclose(ours.table(ids), theirs.table(ids), rtol=0, atol=ROUNDING * 4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 40), (1, 9, 40), (2, 3, 40), (5, 40), (40,)])
def test_float_layers_compute_what_mlx_does(shape, bias):
    theirs, ours = nn.Linear(40, 12, bias=bias), nn.Linear(40, 12, bias=bias)
    ours.update(theirs.parameters())
    use_blas(ours)
    x = mx.array(normal(*shape))
    assert ours.parameters().keys() == theirs.parameters().keys()
    assert close(ours(x), np.array(theirs(x)), 40)


@pytest.mark.parametrize(
    "how", [None, {"bits": 4, "group_size": 32}, {"bits": 8, "group_size": 32}]
)
def test_a_layer_whose_arrays_are_replaced_computes_with_the_new_ones(how):
    net = nn.Linear(64, 16)
    layer = net if how is None else net.to_quantized(**how)
    use_blas(layer)
    before = layer(mx.ones((1, 1, 64)))
    for name in ("weight",) if how is None else ("scales", "biases"):
        layer[name] = layer[name] * 2
    bias = layer.bias if "bias" in layer else 0
    assert mx.allclose(layer(mx.ones((1, 1, 64))) - bias, 2 * (before - bias), rtol=1e-5, atol=1e-5)
    layer.set_dtype(mx.bfloat16)
    assert layer(mx.ones((1, 1, 64), mx.bfloat16)).dtype == mx.bfloat16


def test_each_product_is_computed_as_meant(monkeypatch):
    """One row of 4 bits and many rows not by MLX's own product, few rows of 8 bits by it."""
    called = []
    own = mx.quantized_matmul
    monkeypatch.setattr(
        cpu_linear.mx, "quantized_matmul", lambda *a, **k: called.append(1) or own(*a, **k)
    )
    for bits, calls in ((4, 0), (8, 1)):
        called.clear()
        _, ours = pair(64, 24, False, {"bits": bits, "group_size": 64})
        for rows in (1, 60):
            mx.eval(ours.linear(mx.array(normal(1, rows, 64))))
        assert len(called) == calls


def test_weights_stay_at_four_bits():
    _, ours = pair(256, 64, False, {"bits": 4, "group_size": 64})
    before = mx.get_active_memory()
    mx.eval(ours.linear(mx.zeros((1, 256))))
    assert mx.get_active_memory() - before < 64 * 256  # a float copy would be four times that
    codes, scales = ours.linear.weight, ours.linear.scales
    start = np.array(codes, copy=False).__array_interface__["data"][0]
    assert np.array(scales, copy=False).__array_interface__["data"][0] == start + codes.nbytes


def test_an_mlx_that_does_not_hand_pointers_on_is_noticed(monkeypatch):
    plain = mx.addmm

    def copied(c, a, b, alpha):
        return plain(c, a * 1, b, alpha=1.0)

    monkeypatch.setattr(cpu_linear.mx, "addmm", copied)
    cpu_linear._int4_works.cache_clear()
    try:
        _, ours = pair(64, 24, False, {"bits": 4, "group_size": 64})
        assert ours.linear.packed is None
    finally:
        cpu_linear._int4_works.cache_clear()

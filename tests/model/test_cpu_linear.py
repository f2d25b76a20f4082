"""`cpu_blas.c` against numpy in float64, and the linear layers that use it against MLX's."""

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
    not uses_openblas(), reason="MLX has another BLAS here: see edge doctor"
)
SIZES = st.integers(1, 70)
ROUNDING = 1e-6  # of float32, relative to the largest sum


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def close(found, exact, scale):
    return found.shape == exact.shape and np.abs(np.array(found) - exact).max() <= ROUNDING * scale


@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.integers(1, 3))
def test_products_of_all_shapes_and_layouts(m, n, k, a_transposed, b_transposed, batch):
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


def pair(inputs, outputs, bits=None, group_size=32, bias=False):
    """The same layers of MLX and of edge; `bits` of None keeps floats."""
    layers = []
    for _ in range(2):
        net = nn.Module()
        net.linear, net.table = nn.Linear(inputs, outputs, bias), nn.Embedding(outputs, inputs)
        net.linear.weight = mx.array(normal(outputs, inputs))
        net.table.weight = mx.array(normal(inputs, outputs).T)
        if bits is not None:
            nn.quantize(net, group_size, bits)
        layers.append(net)
    layers[1].update(layers[0].parameters())
    use_blas(layers[1])
    return layers


@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from([(None, 32), (4, 32), (4, 64), (4, 128), (8, 64), (2, 32)]),
    st.sampled_from([1, 2, 3, 7, 8, 50]),
    st.booleans(),
)
def test_layers_compute_the_same_as_mlxs(groups, outputs, storage, rows, bias):
    bits, group_size = storage
    theirs, ours = pair(groups * group_size, outputs, bits, group_size, bias)
    both = (tree_flatten(net.parameters()) for net in (theirs, ours))
    for (name, a), (other, b) in zip(*both, strict=True):
        assert name == other and mx.array_equal(a, b)
    x = mx.array(normal(2, rows, groups * group_size))
    scale = float(mx.abs(theirs.linear(x)).max()) + groups * group_size
    for part in (x, x[:1], x[:1, :1], x[0], x[0, 0]):
        assert close(ours.linear(part), np.array(theirs.linear(part)), scale)
    assert close(ours.table.as_linear(x), np.array(theirs.table.as_linear(x)), scale)
    for ids in (mx.array([0, outputs - 1]), mx.array([outputs - 1]), mx.array([[0]])):
        assert mx.allclose(ours.table(ids), theirs.table(ids), rtol=0, atol=ROUNDING * 4)


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_replaced_arrays_are_used(bits):
    _, ours = pair(64, 16, bits)
    layer, x = ours.linear, mx.ones((1, 1, 64))
    before = layer(x)
    for name in ("weight",) if bits is None else ("scales", "biases"):
        layer[name] = layer[name] * 2
    assert mx.allclose(layer(x), 2 * before, rtol=1e-5, atol=1e-5)
    layer.set_dtype(mx.bfloat16)
    assert layer(x.astype(mx.bfloat16)).dtype == mx.bfloat16


def test_weights_stay_at_four_bits():
    _, ours = pair(256, 64, 4, 64)
    before = mx.get_active_memory()
    mx.eval(ours.linear(mx.zeros((1, 256))))
    assert mx.get_active_memory() - before < 64 * 256  # a float copy would be four times that
    codes, scales = (np.array(ours.linear[name], copy=False) for name in ("weight", "scales"))
    assert scales.ctypes.data == codes.ctypes.data + codes.nbytes


def test_an_addmm_that_copies_its_inputs_is_detected(monkeypatch):
    plain = mx.addmm
    monkeypatch.setattr(cpu_linear.mx, "addmm", lambda c, a, b, alpha: plain(c, a * 1, b, alpha=1))
    cpu_linear._int4_works.cache_clear()
    try:
        assert pair(64, 24, 4, 64)[1].linear.packed is None
    finally:
        cpu_linear._int4_works.cache_clear()

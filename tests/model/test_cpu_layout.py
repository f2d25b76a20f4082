"""Matrices stored by columns: the same numbers, from another order in memory."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import edge.model.load as loading
from edge.model.cpu_layout import store_by_columns
from edge.model.load import load_model
from edge.model.variant import Variant
from tests.support.tiny import CONFIGS, write_checkpoint

ROWS = Variant(columns=False)
IDS = mx.array([[1, 5, 3, 2, 7, 4]])


def by_columns(array):
    """Whether neighbours in a column are neighbours in memory."""
    strides = np.array(memoryview(array).strides)
    return bool(strides[0] < strides[1])


@pytest.fixture
def on_linux(monkeypatch):
    monkeypatch.setattr(loading, "gains_by_columns", lambda: True)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_changes_but_the_place(name, tmp_path, on_linux):
    path = write_checkpoint(tmp_path / "m", CONFIGS[name])
    rows, columns = (load_model(path, mx.float32, v) for v in (ROWS, Variant()))
    arrays, others = (dict(tree_flatten(m.parameters())) for m in (rows, columns))
    for key, array in arrays.items():
        assert mx.array_equal(array, others[key])
    assert mx.allclose(rows(IDS), columns(IDS), atol=1e-5)
    assert by_columns(columns.layers[0].mlp.down_proj.weight)
    assert not by_columns(rows.layers[0].mlp.down_proj.weight)


def test_what_is_written_is_written_by_rows(tmp_path, on_linux):
    path = write_checkpoint(tmp_path / "m", CONFIGS["stable-code"])
    weight = load_model(path, mx.float32).layers[0].mlp.down_proj.weight
    mx.save_safetensors(str(tmp_path / "w.safetensors"), {"w": weight})
    assert mx.array_equal(mx.load(str(tmp_path / "w.safetensors"))["w"], weight)


def test_other_precisions_and_quantised_matrices_stay(demo_out, tmp_path):
    path = write_checkpoint(tmp_path / "m", CONFIGS["stable-code"])
    halves, quantised = load_model(path, mx.float16, ROWS), demo_out / "mlx-int4"
    for model in (halves, load_model(quantised, variant=ROWS)):
        before = {k: id(v) for k, v in tree_flatten(model.parameters())}
        store_by_columns(model)
        assert {k: id(v) for k, v in tree_flatten(model.parameters())} == before


def test_a_mac_and_a_gpu_keep_their_rows(monkeypatch):
    from edge.model import cpu_layout

    for backend, system, gains in (
        ("cpu", "linux", True), ("cpu", "darwin", False), ("cuda", "linux", False),
        ("metal", "darwin", False),
    ):  # fmt: skip
        monkeypatch.setattr(cpu_layout, "current_backend", lambda backend=backend: backend)
        monkeypatch.setattr(cpu_layout.sys, "platform", system)
        assert cpu_layout.gains_by_columns() is gains

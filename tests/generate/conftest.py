"""The demo, loaded for each module of these tests."""

import pytest

import edge


@pytest.fixture(scope="module")
def loaded(demo_out):
    return edge.load(demo_out / "mlx-fp16")

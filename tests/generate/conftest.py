"""The demo, loaded for each module of these tests."""

from dataclasses import replace

import pytest

import edge


@pytest.fixture(scope="module")
def loaded(demo_out):
    return edge.load(demo_out / "mlx-fp16")


@pytest.fixture(scope="module")
def prompt(loaded):
    return loaded[1].encode("    for i in range(10):\n        print(")


@pytest.fixture
def shorten(monkeypatch):
    """Gives a model a context that is soon full."""

    def make(model, context):
        config = replace(model.config, max_position_embeddings=context)
        monkeypatch.setattr(model, "config", config)

    return make

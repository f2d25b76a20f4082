"""Every engine keeps the protocol's promises on the demo."""

import mlx.core as mx
import numpy as np
import pytest

from edge.bench.engines.registry import open_engine

IDS = [5, 70, 300, 12, 900, 44, 1023, 8]
ENGINES = [
    ("mlx", "mlx-fp16"),
    ("mlx", "mlx-int4"),
    ("mlx-lm", "mlx-fp16"),
    ("llama.cpp", "gguf-f16.gguf"),
]


def last_logits(engine):
    if hasattr(engine, "_session"):
        return engine._session.last_logits()
    return np.array(engine._logits.astype(mx.float32)).ravel()


@pytest.fixture(params=ENGINES, ids=lambda p: "-".join(p))
def engine(request, demo_out):
    name, artefact = request.param
    return open_engine(name, demo_out / artefact, 64, 2)


def test_decode_continues_what_prefill_began(engine):
    engine.prefill(IDS)
    at_once = last_logits(engine)
    engine.trim(0)
    engine.prefill(IDS[:3])
    stamps = []
    engine.decode(IDS[3:], lambda: stamps.append(len(stamps)))
    assert len(stamps) == 5
    assert np.abs(last_logits(engine) - at_once).max() < 0.05
    assert engine.logits_are_finite()


def test_trim_forgets_exactly(engine):
    engine.prefill(IDS)
    expected = last_logits(engine)
    engine.trim(4)
    engine.prefill([1, 2, 3])
    engine.trim(4)
    engine.prefill(IDS[4:])
    assert np.abs(last_logits(engine) - expected).max() < 0.05


def test_mlx_refuses_to_trim_to_positions_it_never_had(demo_out):
    """What makes a forgotten depth an error instead of a wrong figure."""
    engine = open_engine("mlx", demo_out / "mlx-int4", 64, 2)
    engine.prefill(IDS)
    with pytest.raises(ValueError, match="holds 8 positions, not 9"):
        engine.trim(9)


def test_facts_add_up(engine):
    engine.prefill(IDS)
    facts = engine.facts()
    assert facts.kv_bytes_per_position in (2 * 4 * 256 * 2, 2 * 4 * 256 * 4)  # K, V x 4 layers
    # 4.46 M weights are read per token: everything but the embedding table.
    assert 4.46e6 * 0.56 < facts.weight_bytes_per_token < 4.47e6 * 4.01

"""Logits of edge's GGUF files in llama.cpp against edge's own network."""

import contextlib

import numpy as np
import pytest

from tests.support.conversions import IDS, edge_logits, exact_session, make
from tests.support.tiny import CONFIGS, write_checkpoint


@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_computes_the_logits_of_edge(name, tmp_path):
    source = write_checkpoint(tmp_path / "model", CONFIGS[name])
    (made,) = make(source, tmp_path / "out", "gguf-f32")
    ours = edge_logits(source)
    with contextlib.closing(exact_session(made.path, 64, 2)) as session:
        assert np.abs(session.all_logits(IDS) - ours).max() <= 1e-4
        session.trim(0)
        session._batch_tokens = 7  # more ids than a batch holds
        assert np.abs(session.all_logits(IDS) - ours).max() <= 1e-4
        session.trim(0)
        for token, expected in zip(IDS, ours, strict=True):
            session.decode([token])
            assert np.abs(session.last_logits() - expected).max() <= 1e-4

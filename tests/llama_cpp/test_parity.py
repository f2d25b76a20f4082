"""Our GGUF files in the real llama.cpp against our own network on the same weights."""

import numpy as np
import pytest

from edge.llama_cpp.session import LlamaSession
from tests.support.conversions import IDS, edge_logits, make
from tests.support.tiny import CONFIGS, write_checkpoint


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_gguf_gives_our_logits(name, tmp_path):
    source = write_checkpoint(tmp_path / "model", CONFIGS[name])
    (made,) = make(source, tmp_path / "out", "gguf-f32")
    ours = edge_logits(source)
    session = LlamaSession(made.path, 64, 2, "f32", flash_attention=False, gpu_layers=0)
    try:
        assert np.abs(session.all_logits(IDS) - ours).max() <= 1e-4
        session.trim(0)
        session._batch_tokens = 7  # more ids than a batch holds
        assert np.abs(session.all_logits(IDS) - ours).max() <= 1e-4
        session.trim(0)
        for token, expected in zip(IDS, ours, strict=True):
            session.decode([token])
            assert np.abs(session.last_logits() - expected).max() <= 1e-4
    finally:
        session.close()

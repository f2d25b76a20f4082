"""Logits of edge's GGUF files in llama.cpp against edge's own network."""

import contextlib

import numpy as np
import pytest

from edge.convert.checkpoint import open_checkpoint
from edge.convert.sources.gguf_config import LLAMA3_CONTEXT
from edge.errors import EdgeError
from tests.support.conversions import IDS, edge_logits, exact_session, make
from tests.support.tiny import ALL_CONFIGS, LLAMA, SCALED_CONFIGS, write_checkpoint

# llama.cpp has no form of these; a Llama 3.1's file says its factors alone, so only the published
# context is read again.
IMPOSSIBLE = ("stablelm-llama3", *(n for n in ALL_CONFIGS if "mscale" in n or "dynamic" in n))
LLAMA3 = {**SCALED_CONFIGS["llama-llama3"]["rope_scaling"]}
LLAMA3 |= {"original_max_position_embeddings": LLAMA3_CONTEXT}
CONFIGS = {name: raw for name, raw in ALL_CONFIGS.items() if name not in IMPOSSIBLE}
CONFIGS |= {"llama-3.1": {**LLAMA, "rope_theta": 500_000.0, "rope_scaling": LLAMA3}}


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


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in ("tied", "llama-llama3")])
def test_the_same_network_is_read_back(name, tmp_path):
    source = write_checkpoint(tmp_path / "model", CONFIGS[name])
    (made,) = make(source, tmp_path / "out", "gguf-f32")
    there, back = open_checkpoint(str(source)), open_checkpoint(str(made.path))
    assert back.config == there.config
    for tensor, shape in there.weights.shapes.items():
        assert np.array_equal(back.weights.read(tensor), there.weights.read(tensor))
        rows = slice(shape[0] // 3, shape[0] // 2)  # of several heads, where it is q or k
        part = back.weights.read(tensor, rows.start, rows.stop)
        assert np.array_equal(part, there.weights.read(tensor)[rows])


def test_scaling_that_llama_cpp_does_not_know_is_refused(tmp_path):
    for name in IMPOSSIBLE:
        source = write_checkpoint(tmp_path / name, ALL_CONFIGS[name])
        with pytest.raises(EdgeError, match=r"llama\.cpp does not compute"):
            make(source, tmp_path / "out", "gguf-f16")
    (made,) = make(
        write_checkpoint(tmp_path / "m", SCALED_CONFIGS["llama-llama3"]), tmp_path, "gguf-f32"
    )
    with pytest.raises(EdgeError, match="another way than Llama"):
        open_checkpoint(str(made.path))

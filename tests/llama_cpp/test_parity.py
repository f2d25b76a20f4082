"""Our GGUF files in the real llama.cpp against our own network on the same weights."""

import mlx.core as mx
import numpy as np
import pytest

from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.llama_cpp.session import LlamaSession
from edge.model.load import load_model
from tests.support.tiny import CONFIGS, token_ids, write_checkpoint


def made(tmp_path, raw, name):
    checkpoint = open_checkpoint(str(write_checkpoint(tmp_path / "model", raw)))
    (artefact,) = convert(checkpoint, [RECIPES[name]], tmp_path / "out", lambda *_: None)
    return checkpoint, artefact.path, token_ids(checkpoint.config)[0].tolist()


def llama_logits(path, ids, kv_type="f32"):
    """Of all ids at once, and of one after the other."""
    flash_attention = False if kv_type == "f32" else None
    session = LlamaSession(path, 64, 2, kv_type, flash_attention, gpu_layers=0)
    try:
        batch = session.all_logits(ids)
        session.trim(0)
        steps = []
        for token in ids:
            session.decode([token])
            steps.append(session.last_logits())
        return batch, np.stack(steps)
    finally:
        session.close()


def our_logits(checkpoint, ids):
    return np.array(load_model(checkpoint.source.path, mx.float32)(mx.array([ids])))[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_gguf_gives_our_logits(name, tmp_path):
    checkpoint, path, ids = made(tmp_path, CONFIGS[name], "gguf-f32")
    ours = our_logits(checkpoint, ids)
    for theirs in llama_logits(path, ids):
        assert np.abs(theirs - ours).max() <= 1e-4


@pytest.mark.parametrize("name", ["stable-code", "stablelm-2-12b", "qkv-bias"])
def test_float16_gguf_is_close(name, tmp_path):
    checkpoint, path, ids = made(tmp_path, CONFIGS[name], "gguf-f16")
    ours = our_logits(checkpoint, ids)
    for theirs in llama_logits(path, ids, kv_type="f16"):
        assert np.abs(theirs - ours).max() <= 2e-2
        assert (theirs.argmax(-1) == ours.argmax(-1)).mean() >= 0.97


def test_another_rope_base_is_far_off(tmp_path):
    """The check above is sharp: base 10000 would show in a 1e6 model."""
    _, path, ids = made(tmp_path / "right", CONFIGS["theta-1e6"], "gguf-f32")
    checkpoint, *_ = made(tmp_path / "wrong", CONFIGS["plain"], "gguf-f32")
    batch, _ = llama_logits(path, ids)
    assert np.abs(batch - our_logits(checkpoint, ids)).max() > 0.05


def test_more_ids_than_a_batch_holds(demo_out):
    session = LlamaSession(RECIPES["gguf-f32"].path_in(demo_out), 64, 2, "f32", False, gpu_layers=0)
    ids = list(range(100, 123))
    try:
        whole = session.all_logits(ids)
        session.trim(0)
        session._batch_tokens = 5
        pieces = session.all_logits(ids)
    finally:
        session.close()
    assert pieces.shape == (23, session.vocab_size)
    assert np.allclose(whole, pieces, atol=1e-4)

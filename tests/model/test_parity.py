"""Our network against Hugging Face's (recorded and live) and mlx-lm's."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model as mlx_lm_load_model

from edge.model.config import ModelConfig
from edge.model.load import load_model
from edge.model.stablelm import Model
from tests.support.tiny import (
    CONFIGS,
    LLAMA_CONFIGS,
    random_tensors,
    token_ids,
    write_checkpoint,
)

REFERENCE = Path(__file__).parent / "reference_logits.npz"
TOLERANCE = 1e-4
ALL = CONFIGS | LLAMA_CONFIGS


@pytest.fixture(scope="module")
def reference():
    return np.load(REFERENCE)


def tiny_model(raw: dict) -> Model:
    config = ModelConfig.from_dict(raw)
    model = Model(config)
    weights = {name: mx.array(array) for name, array in random_tensors(config).items()}
    model.load_weights(list(model.sanitize(weights).items()))
    return model


@pytest.mark.parametrize("name", ALL)
def test_prefill_matches_transformers(name, reference):
    model = tiny_model(ALL[name])
    logits = np.array(model(mx.array(token_ids(model.config))))[0]
    assert np.abs(logits - reference[name]).max() < TOLERANCE


@pytest.mark.parametrize("name", ALL)
def test_token_by_token_matches_transformers(name, reference):
    model = tiny_model(ALL[name])
    ids = mx.array(token_ids(model.config))
    cache = make_prompt_cache(model)
    steps = [model(ids[:, i : i + 1], cache)[0] for i in range(ids.shape[1])]
    logits = np.array(mx.concatenate(steps))
    assert np.abs(logits - reference[name]).max() < TOLERANCE


@pytest.mark.parametrize("name", ALL)
def test_prefill_in_chunks_matches_transformers(name, reference):
    model = tiny_model(ALL[name])
    ids = mx.array(token_ids(model.config))
    cache = make_prompt_cache(model)
    chunks = [model(ids[:, a:b], cache)[0] for a, b in ((0, 7), (7, 8), (8, 40))]
    logits = np.array(mx.concatenate(chunks))
    assert np.abs(logits - reference[name]).max() < TOLERANCE


@pytest.mark.parametrize("name", ALL)
def test_live_transformers(name, reference):
    pytest.importorskip("torch", reason="PyTorch is not installed: recorded logits are used alone")
    from tools.record_reference_logits import reference_logits

    assert np.abs(reference_logits(ALL[name]) - reference[name]).max() < 1e-5


@pytest.mark.parametrize("name", [n for n in ALL if n != "tied"])  # its StableLM has no tied head
def test_matches_mlx_lm_on_the_same_files(name, tmp_path):
    # Under our own config.json, which mlx-lm must understand as well.
    path = write_checkpoint(tmp_path / "model", ModelConfig.from_dict(ALL[name]).to_dict())
    ours = load_model(path, mx.float32)
    theirs, _ = mlx_lm_load_model(path)
    ids = mx.array(token_ids(ours.config))
    assert np.abs(np.array(ours(ids)) - np.array(theirs(ids))).max() < TOLERANCE
    our_cache, their_cache = make_prompt_cache(ours), make_prompt_cache(theirs)
    for i in range(ids.shape[1]):
        step, peer = ours(ids[:, i : i + 1], our_cache), theirs(ids[:, i : i + 1], their_cache)
        assert np.abs(np.array(step) - np.array(peer)).max() < TOLERANCE


def test_batch_rows_are_independent():
    model = tiny_model(CONFIGS["stable-code"])
    first, second = (mx.array(token_ids(model.config, seed=s)) for s in (1, 2))
    together = model(mx.concatenate([first, second]))
    apart = mx.concatenate([model(first), model(second)])
    assert np.abs(np.array(together) - np.array(apart)).max() < TOLERANCE

"""Synthetic weights: always the same, of a size that keeps activations in bounds."""

import contextlib
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer

from edge.convert.artefacts.manifest import Corrections, read_manifest
from edge.convert.checkpoint import open_checkpoint
from edge.convert.sources.published import SHAPES
from edge.convert.sources.synthetic import SPECIAL_TOKENS, SyntheticWeights
from edge.convert.verify import find_origin, verify
from edge.errors import EdgeError
from edge.llama_cpp.session import LlamaSession
from edge.model.load import load_model
from tests.support.conversions import llama_tokens, make

TEXT = "def naïve(x):\n\treturn '日本' + x  # ok!!"
NARROW = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}
NARROW |= {"num_key_value_heads": 2, "vocab_size": 512}
BIG = "model.layers.0.mlp.gate_proj.weight"  # 13824 rows of 5120: 68 blocks of numbers
RECORDED = [10704, 8324, 7316, 39507]


@pytest.fixture
def narrow(monkeypatch):
    def named(name, **changes):
        monkeypatch.setitem(SHAPES, "narrow", replace(SHAPES[name], **{**NARROW, **changes}))
        return "synthetic:narrow"

    return named


@pytest.fixture(scope="module")
def weights():
    return SyntheticWeights(replace(SHAPES["stablelm-2-12b"], num_hidden_layers=1))


@given(st.integers(0, 13824), st.integers(0, 500))
def test_rows_do_not_depend_on_the_blocks_they_are_read_in(weights, start, count):
    whole = weights.read(BIG, start, start + count)
    middle = start + count // 3
    parts = [weights.read(BIG, start, middle), weights.read(BIG, middle, start + count)]
    assert whole.dtype == np.float16
    assert np.array_equal(np.concatenate(parts), whole)
    assert whole.shape == (min(count, 13824 - start), 5120)
    # Recorded: the values must be the same on every machine.
    assert weights.read(BIG, 5000, 5001)[0, :4].view(np.uint16).tolist() == RECORDED


@pytest.mark.parametrize("name", ["stable-code-3b", "stablelm-2-1_6b", "stablelm-2-12b"])
def test_activations_stay_in_bounds_through_all_layers(narrow, tmp_path, name):
    (made,) = make(narrow(name, eos_token_ids=(0,), bos_token_id=0), tmp_path, "mlx-fp16")
    ids = mx.array(np.random.RandomState(0).randint(0, 264, (1, 48)))
    logits = np.array(load_model(made.path, mx.float32)(ids))
    assert np.isfinite(logits).all()
    assert 0.3 < logits.std() < 5
    assert np.unique(logits.argmax(-1)).size > 5


def test_layers_and_shape_are_checked():
    with pytest.raises(EdgeError, match="there is no shape 'gpt-5'; choose from stable-code-3b"):
        open_checkpoint("synthetic:gpt-5")
    fewer = open_checkpoint("synthetic:stable-code-3b", corrections=Corrections(layers=3))
    assert fewer.config.num_hidden_layers == 3
    assert fewer.source.name == "synthetic-stable-code-3b-3-layers"
    assert open_checkpoint("synthetic:stable-code-3b").fingerprint != fewer.fingerprint


def test_artefacts_are_labelled_verify_and_share_a_tokenizer(narrow, tmp_path):
    source = narrow("stable-code-3b", num_hidden_layers=1)
    mlx, gguf = (made.path for made in make(source, tmp_path, "mlx-int4", "gguf-q8_0"))
    for path in (mlx, gguf):
        manifest = read_manifest(path)
        assert (manifest.source, manifest.source_sha256) == ("synthetic:narrow", {})
        assert verify(path, find_origin(path), lambda _: None).problems == ()
        (again,) = make(path, tmp_path / "again", "gguf-q4_0", force=True)
        assert manifest.synthetic and read_manifest(again.path).synthetic
    tokenizer = load_tokenizer(mlx)
    with contextlib.closing(LlamaSession(gguf, 64, 1)) as session:
        for text in (TEXT, *(f"a{token}b" for token in SPECIAL_TOKENS)):
            ids = tokenizer.encode(text)
            assert llama_tokens(session, text) == ids
            assert tokenizer.decode(ids) == text

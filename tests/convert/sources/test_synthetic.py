"""Random weights that are always the same, keep activations in bounds, and say what they are."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

import edge
from edge.convert.artefacts.manifest import read_manifest
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import Corrections, open_checkpoint
from edge.convert.convert import convert
from edge.convert.sources.published import SHAPES
from edge.convert.sources.synthetic import (
    BLOCK_NUMBERS,
    SPECIAL_TOKENS,
    SyntheticWeights,
    open_synthetic,
)
from edge.convert.verify import find_origin, verify
from edge.errors import EdgeError
from edge.llama_cpp.session import LlamaSession
from edge.model.load import load_model
from edge.model.tensors import expected_shapes

TEXT = "def naïve(x):\n\treturn '日本' + x  # ok!!"
# Deep as published, and as narrow as runs in a moment.
NARROW = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


@pytest.fixture
def narrow(monkeypatch):
    """A way to open a published shape made narrow."""

    def opened(name, **changes):
        config = replace(SHAPES[name], **{**NARROW, **changes})
        monkeypatch.setitem(SHAPES, "narrow", config)
        return open_checkpoint("synthetic:narrow")

    return opened


def make(checkpoint, out, *names):
    recipes = [RECIPES[name] for name in names]
    return [made.path for made in convert(checkpoint, recipes, out, lambda *_: None)]


# --- the weights


@pytest.fixture(scope="module")
def weights():
    return SyntheticWeights(replace(SHAPES["stablelm-2-12b"], num_hidden_layers=1))


BIG = "model.layers.0.mlp.gate_proj.weight"  # 13824 rows of 5120: 68 blocks of numbers


@given(st.integers(0, 13824), st.integers(0, 500))
def test_rows_are_the_same_in_whatever_pieces_they_are_read(weights, start, count):
    whole = weights.read(BIG, start, start + count)
    middle = start + count // 3
    parts = [weights.read(BIG, start, middle), weights.read(BIG, middle, start + count)]
    assert whole.dtype == np.float16
    assert np.array_equal(np.concatenate(parts), whole)
    assert whole.shape == (min(count, 13824 - start), 5120)


def test_another_process_makes_the_same_numbers(weights):
    """Recorded: artefacts of one name must be one thing on every machine."""
    rows = weights.read(BIG, 5000, 5001)[0, :4]
    assert rows.view(np.uint16).tolist() == RECORDED


RECORDED = [10704, 8324, 7316, 39507]


def test_blocks_and_tensors_differ(weights):
    rows = BLOCK_NUMBERS // 5120
    first, second = weights.read(BIG, 0, rows), weights.read(BIG, rows, 2 * rows)
    other = weights.read(BIG.replace("gate", "up"), 0, rows)
    for array in (second, other):
        correlation = np.corrcoef(first.ravel()[:100_000], array.ravel()[:100_000])[0, 1]
        assert abs(correlation) < 0.02


def test_every_tensor_has_its_shape_and_finite_numbers_of_the_right_size():
    for name, config in SHAPES.items():
        config = replace(config, num_hidden_layers=1)
        weights = SyntheticWeights(config)
        assert weights.shapes == expected_shapes(config)
        for tensor, shape in weights.shapes.items():
            rows = weights.read(tensor, 0, 64).astype(np.float32)
            assert rows.shape == (min(64, shape[0]), *shape[1:])
            assert np.isfinite(rows).all()
            if len(shape) == 2:
                assert rows.std() * shape[1] ** 0.5 == pytest.approx(1, abs=0.05), (name, tensor)
            else:
                assert rows.mean() == pytest.approx(float(not tensor.endswith("bias")), abs=0.07)


def test_a_vector_is_read_in_part_like_any_tensor(weights):
    whole = weights.read("model.norm.weight")
    assert np.array_equal(weights.read("model.norm.weight", 100, 200), whole[100:200])
    assert weights.read("model.norm.weight", 6000, 7000).shape == (0,)


@pytest.mark.parametrize("name", ["stable-code-3b", "stablelm-2-1_6b", "stablelm-2-12b"])
def test_activations_stay_in_bounds_through_all_layers(narrow, tmp_path, name):
    (path,) = make(narrow(name, eos_token_ids=(0,), bos_token_id=0), tmp_path, "mlx-fp16")
    model = load_model(path, mx.float32)
    ids = mx.array(np.random.RandomState(0).randint(0, 264, (1, 48)))
    logits = np.array(model(ids))
    assert np.isfinite(logits).all()
    assert 0.3 < logits.std() < 5
    assert np.unique(logits.argmax(-1)).size > 5  # no single token for whatever comes


# --- what it is called


def test_layers_are_changed_and_labelled():
    checkpoint = open_checkpoint("synthetic:stable-code-3b", corrections=Corrections(layers=3))
    assert checkpoint.config.num_hidden_layers == 3
    assert checkpoint.source.name == "synthetic-stable-code-3b-3-layers"
    assert checkpoint.source.synthetic
    per_layer = (2_795_443_200 - checkpoint.parameters) / 29
    assert per_layer == 3 * 2560 * 6912 + 4 * 2560 * 2560 + 4 * 2560
    whole = open_checkpoint("synthetic:stable-code-3b")
    assert whole.parameters == 2_795_443_200
    assert whole.fingerprint != checkpoint.fingerprint


def test_an_unknown_shape_lists_the_known():
    with pytest.raises(EdgeError, match="no synthetic shape 'gpt-5'; choose from stable-code-3b"):
        open_checkpoint("synthetic:gpt-5")


def test_every_artefact_is_labelled_and_verifies(narrow, tmp_path):
    checkpoint = narrow("stable-code-3b", num_hidden_layers=2)
    for path in make(checkpoint, tmp_path, "mlx-int4", "gguf-q8_0"):
        manifest = read_manifest(path)
        assert manifest.synthetic
        assert (manifest.source, manifest.source_sha256) == ("synthetic:narrow", {})
        assert verify(path, find_origin(path), lambda _: None).problems == ()


# --- the tokenizer


@pytest.mark.parametrize("name", SHAPES)
def test_its_tokenizer_is_the_tokenizers_packages(name):
    from tokenizers import Tokenizer

    opened = open_synthetic(name, 1)
    tokenizer = Tokenizer.from_str(opened.companions["tokenizer.json"].decode())
    end = opened.config.eos_token_ids[0]
    assert tokenizer.token_to_id("<|endoftext|>") == end
    assert tokenizer.decode(tokenizer.encode(TEXT).ids) == TEXT
    marked = f"<fim_prefix>a<fim_suffix>b<fim_middle>{SPECIAL_TOKENS[0]}"
    ids = tokenizer.encode(marked).ids
    assert len(ids) == 6
    assert ids[-1] == end
    assert max(tokenizer.get_vocab().values()) < opened.config.vocab_size
    listed = json.loads(opened.companions["tokenizer.json"])["added_tokens"]
    assert {t["content"]: t["id"] for t in listed} == {
        token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS
    }


def test_all_readers_of_its_tokenizer_agree(narrow, tmp_path):
    from mlx_lm.utils import load_tokenizer

    mlx, gguf = make(
        narrow("stable-code-3b", num_hidden_layers=1), tmp_path, "mlx-fp16", "gguf-f16"
    )
    _, tokenizer = edge.load(mlx)
    session = LlamaSession(gguf, 64, 1)
    for text in (TEXT, f"a<fim_middle>b{SPECIAL_TOKENS[0]}"):
        ids = tokenizer.encode(text)
        assert load_tokenizer(mlx).encode(text) == ids
        assert session.tokenize(text) == ids
        assert tokenizer.decode(ids) == text
    session.decode(tokenizer.encode(TEXT))
    assert np.isfinite(session.last_logits()).all()
    session.close()
    assert len(GGUFReader(str(gguf)).get_field("tokenizer.ggml.tokens").contents()) == 512


def test_absurdly_many_layers_are_refused_at_once():
    with pytest.raises(EdgeError, match="at most 1024"):
        open_synthetic("stable-code-3b", 10**9)

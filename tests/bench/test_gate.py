import json
import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from edge.bench import gate
from edge.bench import reference as module
from edge.bench.engines.mlx import MlxEngine
from edge.bench.gate import PREFILLED, logits_digest, logits_error, quality_error
from edge.bench.reference import reference_job, references
from edge.bench.worker import open_engine
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.errors import EdgeError
from edge.model.kv_cache import make_cache
from edge.model.load import load_model
from edge.profile.profile import Quality
from tests.bench.fakes import job_of
from tests.support import tiny

ROWS = ("mlx-fp16", "mlx-int4", "gguf-f16", "gguf-q5_k_m", "gguf-q6_k")
VOCAB = 4096


@pytest.fixture(scope="module")
def reference(demo_out):
    paths = [str(RECIPES[row].path_in(demo_out)) for row in ROWS]
    return reference_job(open_checkpoint("demo"), paths)


def engine_of(row, out, context_tokens=64, kv_bits=None):
    name = "mlx" if RECIPES[row].is_mlx else "llama.cpp"
    return open_engine(job_of(name, RECIPES[row].path_in(out), kv_bits=kv_bits), context_tokens)


def verdict(reference, row, out, digest, **options):
    recipe = RECIPES[row]
    engine = "mlx" if recipe.is_mlx else "llama.cpp"
    path = str(recipe.path_in(out))
    return logits_error(reference, path, digest, recipe.precision, engine, **options)


@pytest.mark.parametrize("row", ROWS)
def test_right_logits_pass_and_shuffled_ones_do_not(reference, demo_out, row):
    digest = logits_digest(engine_of(row, demo_out), VOCAB)
    assert verdict(reference, row, demo_out, digest) is None
    assert len(json.dumps(digest)) < 40_000
    digest["logits"] = [logits[::-1] for logits in digest["logits"]]
    assert "wrong logits" in verdict(reference, row, demo_out, digest)


def test_half_precision_and_quantised_caches_have_bounds_of_their_own(
    reference, demo_out, monkeypatch
):
    def found(engine, kv_bits=None):
        return verdict(reference, "mlx-int4", demo_out, digests[engine], kv_bits=kv_bits)

    digests = {
        bits: logits_digest(engine_of("mlx-int4", demo_out, kv_bits=bits), VOCAB) for bits in (4, 8)
    }
    monkeypatch.setattr("edge.bench.engines.mlx_lm.compute_dtype", lambda: mx.float16)
    peer = open_engine(job_of("mlx-lm", demo_out / "mlx-int4"), 64)
    digests["mlx-lm"] = logits_digest(peer, VOCAB)
    assert (found("mlx-lm"), found(8, kv_bits=8), found(4, kv_bits=4)) == (None, None, None)
    assert "wrong logits" in found(4)


@pytest.mark.parametrize("shape", ["stablelm-2-12b", "tied", "llama-bias"])
def test_every_model_family_passes(tmp_path, shape):
    """Grouped heads, q/k norms, a parallel residual, tied heads, RMSNorm."""
    raw = {**tiny.CONFIGS, **tiny.LLAMA_CONFIGS}[shape]
    checkpoint = open_checkpoint(str(tiny.write_checkpoint(tmp_path / "model", raw)))
    convert(checkpoint, [RECIPES["mlx-fp16"]], tmp_path, lambda *_: None)
    found = dict(references(checkpoint, [str(tmp_path / "mlx-fp16")]))
    digest = logits_digest(engine_of("mlx-fp16", tmp_path), checkpoint.config.vocab_size)
    assert verdict(found, "mlx-fp16", tmp_path, digest) is None


def wrong_rope_base(model):
    for layer in model.layers:
        layer.self_attn.rope.base = 10_000.0


def swapped_layers(model):
    layers = model.model.layers
    layers[1], layers[2] = layers[2], layers[1]


class WrongPosition:
    """A layer's cache whose position is one too high from the position `first` on."""

    def __init__(self, cache, first):
        self._cache, self._first = cache, first

    def __getattr__(self, name):
        value = getattr(self._cache, name)
        return value + 1 if name == "offset" and value >= self._first else value

    def trim(self, count):
        return self._cache.trim(min(count, self._cache.offset))


@pytest.mark.parametrize(
    ("row", "damage"),
    [("mlx-fp16", swapped_layers), ("mlx-fp16", wrong_rope_base), ("mlx-int4", WrongPosition)],
)
def test_wrong_computation_is_found(reference, demo_out, row, damage):
    model = load_model(demo_out / row, fuse=False)
    cache = make_cache(model, None)
    if damage is WrongPosition:
        cache = [WrongPosition(layer, PREFILLED) for layer in cache]
    else:
        damage(model)
    digest = logits_digest(MlxEngine(model, model.head, cache), VOCAB)
    assert "wrong logits" in verdict(reference, row, demo_out, digest)


def test_a_wrong_number_of_logits_and_nan_are_found(reference, demo_out):
    for size, value, words in ((VOCAB - 1, 0, "4095 logits per token"), (VOCAB, np.nan, "infin")):
        logits = np.full(size, value, np.float32)
        digest = gate.make_digest([logits] * (gate.POSITIONS - PREFILLED + 1), VOCAB)
        digest = json.loads(json.dumps(digest, allow_nan=False))
        assert words in verdict(reference, "mlx-int4", demo_out, digest)


class Renamed:
    """Weights of which some are read under other names."""

    def __init__(self, weights, names):
        self._weights, self._names = weights, names

    def __getattr__(self, name):
        return getattr(self._weights, name)

    def read(self, name, *rows):
        return self._weights.read(self._names.get(name, name), *rows)


def reading(names):
    return lambda checkpoint: replace(checkpoint, weights=Renamed(checkpoint.weights, names))


def wrong_setting(checkpoint):
    return replace(checkpoint, config=replace(checkpoint.config, rope_theta=10_000.0))


Q, K = (f"model.layers.1.self_attn.{letter}_proj.weight" for letter in "qk")
ONE, TWO = (f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2))


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        ("mlx-int4", reading({ONE: TWO}), r"wrong weights: tensor model.layers.1.mlp.down_proj"),
        ("gguf-f16", reading({Q: K, K: Q}), r"wrong weights: tensor model.layers.1.self_attn"),
        ("gguf-f16", wrong_setting, r"rope_theta 10000 instead of 1e.06"),
    ],
)
def test_a_wrong_conversion_is_found(tmp_path, row, change, message):
    checkpoint = open_checkpoint("demo")
    convert(change(checkpoint), [RECIPES[row]], tmp_path, lambda *_: None)
    found = dict(references(checkpoint, [str(RECIPES[row].path_in(tmp_path))]))
    assert re.search(message, verdict(found, row, tmp_path, {}))


def test_the_reference_is_computed_without_tf32_and_a_failure_is_an_error(demo_out, monkeypatch):
    with pytest.raises(EdgeError, match=r"could not be computed .*nowhere"):
        reference_job(open_checkpoint("demo"), [str(demo_out / "nowhere")])
    monkeypatch.setattr(module, "run_child", lambda *asked: asked[4])
    assert reference_job(open_checkpoint("demo"), []) == {"MLX_ENABLE_TF32": "0"}


@pytest.mark.parametrize("row", ["mlx-int4", "gguf-q6_k"])
def test_a_token_beyond_1024_positions_is_checked_where_the_row_needs_it(reference, demo_out, row):
    digest = logits_digest(engine_of(row, demo_out, 1100), VOCAB, 1100)
    assert verdict(reference, row, demo_out, digest) is None
    model = load_model(demo_out / "mlx-int4")
    cache = [WrongPosition(layer, 1024) for layer in make_cache(model)]
    wrong = MlxEngine(model, model.head, cache)
    assert "far_error" not in logits_digest(wrong, VOCAB, 1024)
    digest["far_error"] = logits_digest(wrong, VOCAB, 1100)["far_error"]
    assert "at position 1024 a token" in verdict(reference, row, demo_out, digest)


# The demo's artefacts on 4096 tokens of the sample, in nats per token.
MEASURED = {
    "FP16": 2.0e-6, "BF16": 5.7e-5, "Q8_0": 1.3e-3, "INT8": 5.7e-4, "Q6_K": 7.7e-3, "INT6": 8.5e-3,
    "Q5_0": 0.033, "INT5": 0.034, "Q4_0": 0.11, "INT4": 0.154, "MIXED_4_6": 0.115, "INT3": 0.76,
    "Q2_K": 1.0, "INT2": 3.7,
}  # fmt: skip


def test_bounds_of_quality_pass_measured_rounding_and_little_more():
    for precision, measured in MEASURED.items():
        right, *wrong = (
            Quality(perplexity=5.0, reference="mlx-fp16", kl_mean=kl)
            for kl in (measured, 20 * measured + 0.01, 7.0)
        )
        assert quality_error(right, precision) is None
        assert all("wrong predictions" in quality_error(each, precision) for each in wrong)
    assert "not finite" in quality_error(Quality(reference="mlx-fp16"), "INT4")
    assert quality_error(Quality(perplexity=5.0), "INT4") is None

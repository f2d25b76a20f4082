"""The correctness gate lets every right artefact pass and no wrong one."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from edge.bench.engines.engine import open_engine
from edge.bench.engines.mlx import MlxEngine
from edge.bench.gate import (
    CHECKPOINT,
    POSITIONS,
    PREFILLED,
    gate_tokens,
    judge,
    logits_digest,
    make_digest,
    quality_fault,
)
from edge.bench.reference import reference_job, reference_logits, references
from edge.convert.artefacts.recipes import RECIPES, rounding_bound
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.errors import EdgeError
from edge.model.kv_cache import make_cache
from edge.model.load import load_model
from edge.profile.profile import Quality
from tests.support import tiny

ROWS = ("mlx-fp16", "mlx-int4", "gguf-f16", "gguf-q5_k_m", "gguf-q6_k")
VOCAB = 4096


def path_of(row, out):
    return str(RECIPES[row].path_in(out))


@pytest.fixture(scope="module")
def reference(demo_out):
    return reference_job(open_checkpoint("demo"), [RECIPES[row].path_in(demo_out) for row in ROWS])


def engine_of(row, out, **options):
    name = "mlx" if RECIPES[row].is_mlx else "llama.cpp"
    return open_engine(name, RECIPES[row].path_in(out), 64, 2, **options)


def verdict(reference, row, out, digest, **options):
    engine = "mlx" if RECIPES[row].is_mlx else "llama.cpp"
    return judge(reference, path_of(row, out), digest, RECIPES[row].precision, engine, **options)


@pytest.mark.parametrize("row", ROWS)
def test_what_edge_makes_and_runs_is_right(reference, demo_out, row):
    digest = logits_digest(engine_of(row, demo_out), VOCAB)
    assert verdict(reference, row, demo_out, digest) is None
    assert len(json.dumps(digest)) < 40_000


def test_the_peer_is_right_in_half_precision_too(reference, demo_out, monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr("edge.bench.engines.mlx.compute_dtype", lambda: mx.float16)
    opened = open_engine("mlx-lm", demo_out / "mlx-int4", 64, 2)
    assert verdict(reference, "mlx-int4", demo_out, logits_digest(opened, VOCAB)) is None


@pytest.mark.parametrize("bits", [4, 8])
def test_a_rounded_cache_is_allowed_what_it_costs(reference, demo_out, bits):
    digest = logits_digest(engine_of("mlx-int4", demo_out, kv_bits=bits), VOCAB)
    assert verdict(reference, "mlx-int4", demo_out, digest, kv_bits=bits) is None
    if bits == 4:
        assert "wrong logits" in verdict(reference, "mlx-int4", demo_out, digest)


def test_the_reference_is_the_network_that_runs(demo_out):
    ids = gate_tokens(VOCAB)
    checkpoint = open_checkpoint("demo")
    wanted = reference_logits(checkpoint.config, checkpoint.weights, ids)
    found = load_model(demo_out / "mlx-fp16", mx.float32)(mx.array([ids]))[0]
    assert np.abs(np.array(found) - wanted).max() < 1e-3


@pytest.mark.parametrize("shape", ["stablelm-2-12b", "tied", "llama-bias"])
def test_every_family_passes(tmp_path, shape):
    """Grouped heads, q/k norms, a parallel residual, tied heads, RMSNorm."""
    raw = {**tiny.CONFIGS, **tiny.LLAMA_CONFIGS}[shape]
    checkpoint = open_checkpoint(str(tiny.write_checkpoint(tmp_path / "model", raw)))
    recipe = RECIPES["mlx-fp16"]
    convert(checkpoint, [recipe], tmp_path / "out", lambda *_: None)
    path = path_of(recipe.name, tmp_path / "out")
    found = dict(references(checkpoint, [path]))
    digest = logits_digest(engine_of(recipe.name, tmp_path / "out"), checkpoint.config.vocab_size)
    assert judge(found, path, digest, recipe.precision, "mlx") is None


def rope(base):
    def change(model):
        for layer in model.layers:
            layer.self_attn.rope.base = base

    return change


def swap_queries_and_keys(model):
    attention = model.layers[1].self_attn
    attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj


def damage_one_layer(model):
    projection = model.layers[2].mlp.down_proj
    name = "scales" if "scales" in projection else "weight"
    projection[name] = mx.roll(projection[name], 1, axis=0)


def other_epsilon(model):
    for layer in model.layers:
        layer.input_layernorm.eps = layer.post_attention_layernorm.eps = 0.1


def swap_layers(model):
    layers = model.model.layers
    layers[1], layers[2] = layers[2], layers[1]


def rotate_in_pairs(model):
    for layer in model.layers:
        layer.self_attn.rope.traditional = True


FAULTS = [
    rope(10_000.0),
    swap_queries_and_keys,
    damage_one_layer,
    other_epsilon,
    swap_layers,
    rotate_in_pairs,
]


@pytest.mark.parametrize("row", ["mlx-fp16", "mlx-int4"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__qualname__.split(".")[0])
def test_a_network_that_computes_something_else_is_found(reference, demo_out, row, fault):
    model = load_model(demo_out / row, fuse=False)
    fault(model)
    engine = MlxEngine(model.model, model.head, model, make_cache(model, None))
    assert "wrong logits" in verdict(reference, row, demo_out, logits_digest(engine, VOCAB))


class Skipping:
    """A layer's cache that is one position ahead of itself behind the prompt."""

    def __init__(self, cache):
        self._cache = cache

    def __getattr__(self, name):
        value = getattr(self._cache, name)
        return value + 1 if name == "offset" and value >= PREFILLED else value

    def trim(self, count):
        return self._cache.trim(min(count, self._cache.offset))


@pytest.mark.parametrize("row", ["mlx-fp16", "mlx-int4"])
def test_one_position_skipped_is_found(reference, demo_out, row):
    model = load_model(demo_out / row)
    cache = [Skipping(layer) for layer in make_cache(model, None)]
    engine = MlxEngine(model.model, model.head, model, cache)
    digest = logits_digest(engine, VOCAB)
    assert "wrong logits" in verdict(reference, row, demo_out, digest)


class Shuffled:
    def __init__(self, engine):
        self._engine = engine
        self._order = np.random.default_rng(0).permutation(VOCAB)

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def last_logits(self):
        return self._engine.last_logits()[self._order]


@pytest.mark.parametrize("row", ROWS)
def test_a_shuffled_vocabulary_is_found(reference, demo_out, row):
    digest = logits_digest(Shuffled(engine_of(row, demo_out)), VOCAB)
    assert "wrong logits" in verdict(reference, row, demo_out, digest)


def test_another_number_of_logits_and_no_numbers_are_found(reference, demo_out):
    rows = [np.zeros(VOCAB - 1, np.float32)] * (POSITIONS - PREFILLED + 1)
    short = make_digest(rows, VOCAB)
    assert "4095 logits per token" in verdict(reference, "mlx-int4", demo_out, short)
    rows = [np.full(VOCAB, np.nan, np.float32)] * (POSITIONS - PREFILLED + 1)
    broken = json.loads(json.dumps(make_digest(rows, VOCAB), allow_nan=False))
    assert "infinitely far" in verdict(reference, "mlx-int4", demo_out, broken)


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


def setting(**changed):
    return lambda checkpoint: replace(checkpoint, config=replace(checkpoint.config, **changed))


Q, K = (f"model.layers.1.self_attn.{letter}_proj.weight" for letter in "qk")
ONE, TWO = (f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2))


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        ("mlx-int4", reading({Q: K, K: Q}), r"wrong weights: tensor model.layers.1.self_attn"),
        ("gguf-f16", reading({Q: K, K: Q}), r"wrong weights: tensor model.layers.1.self_attn"),
        ("mlx-int4", reading({ONE: TWO}), r"wrong weights: tensor model.layers.1.mlp.down_proj"),
        ("gguf-f16", setting(rope_theta=10_000.0), r"rope_theta 10000 instead of 1e.06"),
        ("mlx-int4", setting(layer_norm_eps=1e-6), r"layer_norm_eps 1e-06 instead of 1e-05"),
    ],
)
def test_a_wrong_conversion_is_found(tmp_path, row, change, message):
    checkpoint = open_checkpoint("demo")
    convert(change(checkpoint), [RECIPES[row]], tmp_path, lambda *_: None)
    found = dict(references(checkpoint, [path_of(row, tmp_path)]))
    assert re.search(message, verdict(found, row, tmp_path, {}))


@pytest.mark.parametrize(
    ("precision", "bound"),
    [("FP16", 0.03), ("INT4", 1.0), ("Q6_K", 0.25), ("MIXED_2_6", 1.2), ("MENDED", 1.2)],
)
def test_fewer_bits_may_change_more(precision, bound):
    assert rounding_bound(precision, 16.0, 1.2, 0.03) == bound


def test_a_reference_that_fails_is_said(demo_out):
    with pytest.raises(EdgeError, match=r"could not be computed .*nowhere"):
        reference_job(open_checkpoint("demo"), [demo_out / "nowhere"])
    source = SimpleNamespace(origin="demo", path=None)
    checkpoint = SimpleNamespace(source=source, corrections=open_checkpoint("demo").corrections)
    assert CHECKPOINT in reference_job(checkpoint, [])


class WrongFar:
    """Right, but for a token decoded alone beyond 1,024 positions."""

    def __init__(self, engine):
        self._engine, self._length, self._factor = engine, 0, 1.0

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def prefill(self, ids):
        self._length += len(ids)
        self._factor = 1.0
        self._engine.prefill(ids)

    def decode(self, ids, stamp):
        self._length += len(ids)
        self._factor = 1.0 if self._length <= 1024 else 1.3
        self._engine.decode(ids, stamp)

    def trim(self, length):
        self._length = length
        self._engine.trim(length)

    def last_logits(self):
        return self._engine.last_logits() * np.float32(self._factor)


@pytest.mark.parametrize("row", ["mlx-int4", "gguf-q6_k"])
def test_a_token_beyond_1024_positions_is_decoded_where_the_row_goes_there(
    reference, demo_out, row
):
    name = "mlx" if RECIPES[row].is_mlx else "llama.cpp"
    engine = open_engine(name, RECIPES[row].path_in(demo_out), 1100, 2)
    right, wrong = (logits_digest(e, VOCAB, 1100) for e in (engine, WrongFar(engine)))
    assert verdict(reference, row, demo_out, right) is None
    assert "at position 1024 a token decoded alone is 0.3" in verdict(
        reference, row, demo_out, wrong
    )
    near = logits_digest(WrongFar(engine), VOCAB, 1024)
    assert verdict(reference, row, demo_out, near) is None and "far_error" not in near
    engine.close()


def test_the_reference_is_computed_in_float32(monkeypatch):
    """On M5 MLX's products are TF32 otherwise."""
    from edge.bench import reference

    asked = {}
    monkeypatch.setattr(reference, "run_child", lambda *a: asked.update(a[4]) or {})
    reference.reference_job(open_checkpoint("demo"), [])
    assert asked == {"MLX_ENABLE_TF32": "0"}


# The demo's artefacts on 4096 tokens of the sample, in nats per token.
MEASURED = {
    "FP16": 2.0e-6, "BF16": 5.7e-5, "Q8_0": 1.3e-3, "INT8": 5.7e-4, "Q6_K": 7.7e-3, "INT6": 8.5e-3,
    "Q5_0": 0.033, "INT5": 0.034, "Q4_0": 0.11, "INT4": 0.154, "MIXED_4_6": 0.115, "INT3": 0.76,
    "Q2_K": 1.0, "INT2": 3.7,
}  # fmt: skip


@pytest.mark.parametrize("precision", MEASURED)
def test_quality_bounds_let_rounding_pass_and_little_more(precision):
    right, *wrong = (
        Quality(perplexity=5.0, reference="mlx-fp16", kl_mean=kl)
        for kl in (MEASURED[precision], 20 * MEASURED[precision] + 0.01, 7.0)
    )
    assert quality_fault(right, precision) is None
    assert all("wrong predictions" in quality_fault(each, precision) for each in wrong)


def test_predictions_that_are_not_finite_are_a_fault():
    assert "not finite" in quality_fault(Quality(reference="mlx-fp16"), "INT4")
    assert quality_fault(Quality(perplexity=5.0), "INT4") is None

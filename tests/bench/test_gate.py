import json
import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from msgspec.structs import replace as changed

from edge.bench import gate
from edge.bench import reference as module
from edge.bench.engines.mlx import MlxEngine
from edge.bench.gate import (
    PREFILLED,
    check_shapes,
    logits_digest,
    logits_error,
    pieces_bound,
    quality_error,
    shapes_error,
    with_reference,
)
from edge.bench.reference import reference_job, references
from edge.bench.worker import open_engine
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.errors import EdgeError
from edge.model.kv_cache import make_cache
from edge.model.load import load_model
from edge.profile.profile import Quality, Workload
from tests.bench.fakes import GATE, FakeClock, FakeEngine, job_of
from tests.support import tiny

ROWS = ("mlx-fp16", "mlx-int4", "mlx-int2", "gguf-f16", "gguf-q5_k_m", "gguf-q6_k")
VOCAB = 4096


@pytest.fixture(scope="module")
def reference(demo_out):
    paths = [str(RECIPES[row].path_in(demo_out)) for row in ROWS]
    return reference_job(open_checkpoint("demo"), paths)


def engine_of(row, out, context_tokens=64, kv_bits=None):
    name = "mlx" if RECIPES[row].is_mlx else "llama.cpp"
    return open_engine(job_of(name, RECIPES[row].path_in(out), kv_bits=kv_bits), context_tokens)


def verdict(reference, row, out, digest, kv_bits=None):
    recipe = RECIPES[row]
    engine = "mlx" if recipe.is_mlx else "llama.cpp"
    path = str(recipe.path_in(out))
    found = with_reference(GATE, reference[path], digest, engine, kv_bits)
    return logits_error(reference, path, digest, recipe.precision, found)


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
    assert re.search(message, verdict(found, row, tmp_path, found[gate.CHECKPOINT]))


def test_the_reference_is_computed_without_tf32_and_a_failure_is_an_error(demo_out, monkeypatch):
    with pytest.raises(EdgeError, match=r"could not be computed .*nowhere"):
        reference_job(open_checkpoint("demo"), [str(demo_out / "nowhere")])
    monkeypatch.setattr(module, "run_child", lambda *asked: asked[4])
    assert reference_job(open_checkpoint("demo"), []) == {"MLX_ENABLE_TF32": "0"}


# --- at the shapes that are timed

AT_DEPTH = Workload(200, 20, 50)


def checked(engine, workload=AT_DEPTH, longest=1024):
    return check_shapes(engine, workload, VOCAB, longest, pieces_bound("mlx", None, as_is=False))


@pytest.mark.parametrize(
    ("name", "artefact", "workload"),
    [
        ("mlx", "mlx-fp16", AT_DEPTH),
        ("mlx-lm", "mlx-int4", Workload(40, 1, 30, joint=True)),
        ("llama.cpp", "gguf-q5_k_m.gguf", Workload(300, 20, joint=True)),
        ("llama.cpp", "gguf-f16.gguf", Workload(0, 2, 20)),
    ],
)
def test_every_engine_computes_the_same_at_once_and_in_pieces(demo_out, name, artefact, workload):
    engine = open_engine(job_of(name, demo_out / artefact), max(workload.context_tokens, 32))
    bound = pieces_bound(name, None, as_is=False)
    found = check_shapes(engine, workload, VOCAB, 1024, bound)
    assert (found.prompt_tokens, found.depth) == (workload.prompt, workload.depth)
    assert found.positions >= 3
    assert found.worst_error < (1e-4 if name != "llama.cpp" else 0.1)
    assert shapes_error(found) is None


class Wrapped(nn.Module):
    def __init__(self, inner, call):
        super().__init__()
        self.inner, self._call = inner, call

    def __call__(self, *given):
        return self._call(self.inner, *given)


def miscompiled(inner, x):
    """A product that is right up to 128 rows and wrong above, in half of its columns."""
    y = inner(x)
    width = y.shape[-1] // 2
    return y if y.shape[1] <= 128 else mx.concatenate([y[..., :width], y[..., :width]], axis=-1)


def swapped_heads(inner, x):
    """The output of attention with its halves swapped, above 128 rows."""
    return inner(x if x.shape[1] <= 128 else mx.roll(x, x.shape[-1] // 2, axis=-1))


def around(part, name, call):
    def damage(model):
        for layer in model.layers:
            holder = getattr(layer, part)
            setattr(holder, name, Wrapped(getattr(holder, name), call))

    return damage


def offset_of(change):
    return around("self_attn", "rope", lambda rope, x, offset: rope(x, change(offset)))


class Stale:
    """A layer's cache that keeps something of what was trimmed: its length, or its keys."""

    def __init__(self, cache, kept):
        self._cache, self._kept, self._most = cache, kept, 0

    def __getattr__(self, name):
        return getattr(self._cache, name)

    def trim(self, count):
        return count if self._kept == "length" else self._cache.trim(count)

    def update_and_fetch(self, keys, values):
        held = self._cache.update_and_fetch(keys, values)
        self._most = max(self._most, self._cache.offset)
        if self._kept == "length":
            return held
        return tuple(a[..., : self._most, :] for a in (self._cache.keys, self._cache.values))


def damaged(out, damage):
    model = load_model(out / "mlx-fp16", fuse=False)
    cache = make_cache(model)
    if isinstance(damage, str):
        cache = [Stale(layer, damage) for layer in cache]
    else:
        damage(model)
    return MlxEngine(model, model.head, cache)


@pytest.mark.parametrize(
    "damage",
    [
        around("mlp", "down_proj", miscompiled),
        around("self_attn", "o_proj", swapped_heads),
        offset_of(lambda offset: 0 if offset == 50 else offset),
        offset_of(lambda offset: offset + (offset >= 50)),
        offset_of(lambda offset: offset + (offset > 0)),
        "length",
        "keys",
    ],
    ids=["product", "heads", "depth 0", "depth + 1", "no start", "stale length", "stale keys"],
)
def test_a_fault_at_the_timed_shapes_is_found(demo_out, damage):
    found = checked(damaged(demo_out, damage))
    assert found.worst_error > 0.05
    assert f"wrong logits: at position {found.worst_position} the timed" in shapes_error(found)


def test_a_product_that_is_wrong_above_128_rows_needs_as_many(reference, demo_out, monkeypatch):
    engine = damaged(demo_out, around("mlp", "down_proj", miscompiled))
    assert verdict(reference, "mlx-fp16", demo_out, logits_digest(engine, VOCAB)) is None
    short = Workload(100, 2)
    assert shapes_error(checked(engine, short)) is None
    monkeypatch.setattr(engine, "least_rows", lambda: 200)  # as on a GPU
    found = checked(engine, short)
    assert (found.prompt_tokens, shapes_error(found) is None) == (200, False)
    assert checked(engine, short, longest=128).prompt_tokens == 128
    assert checked(engine, short, longest=0).prompt_tokens == 100


def test_swapped_heads_are_found_at_any_length(reference, demo_out):
    damage = around("self_attn", "o_proj", lambda inner, x: inner(mx.roll(x, 128, axis=-1)))
    digest = logits_digest(damaged(demo_out, damage), VOCAB)
    assert "wrong logits" in verdict(reference, "mlx-fp16", demo_out, digest)


@pytest.mark.parametrize(
    ("workload", "prefills", "tokens", "steps"),
    [(Workload(512, 128), 36, 1600, 25), (Workload(0, 64, 9000), 260, 18100, 18)],
)
def test_the_cost_is_bounded(workload, prefills, tokens, steps):
    engine = FakeEngine(FakeClock())
    engine.last_logits = lambda: np.zeros(VOCAB, np.float32)
    assert checked(engine, workload).worst_error is None  # without any logits nothing agrees
    sizes = [len(ids) for kind, _, ids in engine.calls if kind == "prefill"]
    assert len(sizes) <= prefills
    assert sum(sizes) <= tokens
    assert sum(len(ids) for kind, _, ids in engine.calls if kind == "decode") <= steps


def test_bounds_of_pieces_allow_for_coarser_rounding():
    assert pieces_bound("mlx-lm", None, as_is=False) < pieces_bound("llama.cpp", None, as_is=False)
    assert pieces_bound("mlx", 4, as_is=False) == pieces_bound("mlx-lm", None, as_is=True) == 0.6
    assert shapes_error(changed(GATE, worst_error=0.051)) and not shapes_error(GATE)


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

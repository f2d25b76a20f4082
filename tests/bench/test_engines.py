"""The engines on the demo."""

import mlx.core as mx
import numpy as np
import pytest

from edge.bench.worker import check_memory, open_engine
from edge.generate.decode import generate_tokens
from edge.model.kv_cache import make_cache
from edge.model.load import load_model
from tests.bench.fakes import job_of

IDS = [5, 70, 300, 12, 900, 44, 1023, 8]
ENGINES = [
    ("mlx", "mlx-fp16"),
    ("mlx", "mlx-int4"),
    ("mlx-lm", "mlx-fp16"),
    ("llama.cpp", "gguf-f16.gguf"),
]


@pytest.mark.parametrize(("name", "artefact"), ENGINES)
def test_prefill_decode_trim_and_facts(name, artefact, demo_out):
    engine = open_engine(job_of(name, demo_out / artefact), 64)
    engine.prefill(IDS)
    at_once = engine.last_logits()
    assert (at_once.shape, at_once.dtype) == ((4096,), np.float32)
    engine.trim(4)
    engine.prefill([1, 2, 3])
    engine.trim(3)
    stamps = []
    engine.decode(IDS[3:], lambda: stamps.append(len(stamps)))
    assert len(stamps) == 5
    assert np.abs(engine.last_logits() - at_once).max() < 0.05
    facts = engine.facts()
    assert facts.kv_bytes_per_position in (2 * 4 * 256 * 2, 2 * 4 * 256 * 4)  # K, V x 4 layers
    # 4.46 M weights are read per token: everything but the embedding table.
    assert 4.46e6 * 0.56 < facts.weight_bytes_per_token < 4.47e6 * 4.01
    if name == "llama.cpp":
        assert facts.build.startswith("llama-cpp-python 0.") and "CPU" in facts.build
        assert facts.gpu_layers == (-1 if facts.device == "GPU" else 0)
        engine.close()
        assert engine._session._model is None and engine._session._context is None
    else:
        with pytest.raises(ValueError, match="holds 8 positions, not 9"):
            engine.trim(9)


def test_prefill_leaves_the_same_cache_as_generation_bit_for_bit(demo_out):
    prompt = [7 * i % 4000 for i in range(300)]
    engine = open_engine(job_of("mlx", demo_out / "mlx-fp16"), 512)
    engine.prefill(prompt)
    model = load_model(demo_out / "mlx-fp16")
    cache = make_cache(model)
    (token,) = generate_tokens(model, prompt, cache=cache, max_tokens=1)
    for mine, theirs in zip(engine._cache, cache, strict=True):
        assert mine.offset == theirs.offset == 300
        assert mx.array_equal(mine.keys, theirs.keys)
    assert int(mx.argmax(engine._logits).item()) == token


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_cache_is_counted_and_mentioned(demo_out, bits):
    path = demo_out / "mlx-int4"
    plain, coded = (open_engine(job_of("mlx", path, kv_bits=b), 64) for b in (None, bits))
    for engine in (plain, coded):
        engine.prefill(IDS)
    facts = coded.facts()
    assert facts.kv_dtype == f"{bits} bits in groups of 32"
    assert any(f"--kv-bits {bits}" in remark for remark in facts.remarks)
    item = {"float32": 4, "float16": 2}[plain.facts().kv_dtype]
    per_number = bits / 8 + 2 * item / 32
    assert facts.kv_bytes_per_position == plain.facts().kv_bytes_per_position / item * per_number
    assert np.abs(coded.last_logits() - plain.last_logits()).max() < (0.2 if bits == 8 else 4)


def test_memory_is_checked_for_mlx_and_counts_our_quantised_cache(demo_out):
    path = demo_out / "mlx-fp16"
    for name in ("mlx", "mlx-lm"):
        plain, coded = (check_memory(job_of(name, path, kv_bits=b), 500)[0] for b in (None, 8))
        assert plain > (path / "model.safetensors").stat().st_size
        assert (coded < plain) == (name == "mlx")
    assert check_memory(job_of("llama.cpp", demo_out / "gguf-f16.gguf"), 64) == (None, None)

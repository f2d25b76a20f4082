"""Every engine keeps the protocol's promises on the demo."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from edge.bench.engines.opening import check_memory, open_engine
from edge.generate.decode import generate_tokens
from edge.model.kv_cache import make_cache
from edge.model.load import load_model

IDS = [5, 70, 300, 12, 900, 44, 1023, 8]
ENGINES = [
    ("mlx", "mlx-fp16"),
    ("mlx", "mlx-int4"),
    ("mlx-lm", "mlx-fp16"),
    ("llama.cpp", "gguf-f16.gguf"),
]


@pytest.mark.parametrize(("name", "artefact"), ENGINES)
def test_prefill_decode_trim_and_facts(name, artefact, demo_out):
    engine = open_engine(name, demo_out / artefact, 64, 2)
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
        assert engine._session._model and engine._session._context
        engine.close()
        assert engine._session._model is None and engine._session._context is None
    else:  # what makes a forgotten depth an error instead of a wrong figure
        with pytest.raises(ValueError, match="holds 8 positions, not 9"):
            engine.trim(9)


def test_prefill_does_what_the_decode_loop_does(demo_out):
    """The same evaluations in the same order leave the same cache, bit for bit."""
    prompt = [7 * i % 4000 for i in range(300)]
    engine = open_engine("mlx", demo_out / "mlx-fp16", 512, 2)
    engine.prefill(prompt)
    model = load_model(demo_out / "mlx-fp16")
    cache = make_cache(model)
    (token,) = generate_tokens(model, prompt, cache=cache, max_tokens=1)
    for mine, theirs in zip(engine._cache, cache, strict=True):
        assert mine.offset == theirs.offset == 300
        assert mx.array_equal(mine.keys, theirs.keys)
    assert int(mx.argmax(engine._logits).item()) == token


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_cache_is_said_and_counted(demo_out, bits):
    path = demo_out / "mlx-int4"
    plain, coded = (open_engine("mlx", path, 64, 2, kv_bits=b) for b in (None, bits))
    for engine in (plain, coded):
        engine.prefill(IDS)
    facts = coded.facts()
    assert facts.kv_dtype == f"{bits} bits in groups of 32"
    assert any(f"--kv-bits {bits}" in remark for remark in facts.remarks)
    item = {"float32": 4, "float16": 2}[plain.facts().kv_dtype]
    per_number = bits / 8 + 2 * item / 32
    assert facts.kv_bytes_per_position == plain.facts().kv_bytes_per_position / item * per_number
    assert np.abs(coded.last_logits() - plain.last_logits()).max() < (0.2 if bits == 8 else 4)


@pytest.mark.parametrize("name", ["mlx", "mlx-lm"])
def test_memory_is_that_of_the_engines_arrays(demo_out, name):
    path = demo_out / "mlx-fp16"
    need, _ = check_memory(name, path, 500)
    arrays = tree_flatten(open_engine(name, path, 64, 2)._model.parameters())
    assert need.weights_bytes == sum(array.nbytes for _, array in arrays)
    coded, _ = check_memory(name, path, 500, 8)  # only our network's cache
    assert (coded.cache_bytes < need.cache_bytes) == (name == "mlx")
    assert check_memory("llama.cpp", demo_out / "gguf-f16.gguf", 64) == (None, None)

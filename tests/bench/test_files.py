"""Model files that are measured as they are."""

import json

import numpy as np
import pytest

from edge.bench.files import common_model, is_measured_as_is, open_files
from edge.bench.gate import check_shapes
from edge.bench.plan import artefact_targets
from edge.bench.worker import check_memory, open_engine
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.profile.profile import ModelInfo, Workload
from tests.bench.fakes import job_of
from tests.support.any_network import write_gguf, write_mlx

IDS = [5, 7, 3, 1, 9, 4, 10, 8, 2, 6, 0, 11]


@pytest.mark.parametrize(
    "kind",
    [*("qwen2", "qwen3_moe", "gemma3_text", "mamba"), "qwen2.gguf", "mamba.gguf"],
)
def test_any_network_decodes_again_what_was_trimmed(kind, tmp_path):
    path, kind = tmp_path / kind, kind.removesuffix(".gguf")
    is_mlx = path.name == kind
    (write_mlx if is_mlx else write_gguf)(path, kind)
    job = job_of("mlx-lm" if is_mlx else "llama.cpp", path, as_is=True)
    assert check_memory(job, 64)[1] is None
    engine = open_engine(job, 64)
    engine.prefill(IDS)
    at_once = engine.last_logits()
    engine.trim(6)
    engine.decode(IDS[6:], lambda: None)
    assert np.abs(engine.last_logits() - at_once).max() < 0.02 * np.abs(at_once).max()
    facts = engine.facts()
    (file,) = open_files([str(path)])
    found = check_shapes(engine, Workload(40, 4, 10), file.vocab_size, 64, 0.6)
    assert found.positions == 5 and found.worst_error < 0.01
    assert (facts.kv_bytes_per_position == 0) == (kind == "mamba")
    assert 0 < facts.weight_bytes_per_token <= 4 * file.model.parameters
    if kind == "qwen3_moe":  # a token reads a quarter of the experts: 3 matrices of 32 x 64
        all_bytes = 4 * (file.model.parameters - 99 * 64)
        assert facts.weight_bytes_per_token == all_bytes - 2 * 3 * 6 * 32 * 64 * 4
    engine.close()


@pytest.mark.parametrize(("kind", "bits"), [("qwen2", None), ("qwen2", 4), ("qwen3_moe", 8)])
def test_headers_tell_model_precision_and_sizes(kind, bits, tmp_path):
    name = f"Tiny-{bits or 'b'}{'bit' if bits else 'f16'}"
    (file,) = open_files([str(write_mlx(tmp_path / name, kind, bits))])
    (plain,) = open_files([str(write_mlx(tmp_path / "plain", kind))])
    assert file.model == ModelInfo("Tiny", name, None, plain.model.parameters)
    assert file.recipe.precision == (f"INT{bits}" if bits else "BF16")
    assert (file.vocab_size, file.context_tokens, file.engines) == (100, 256, ("mlx-lm",))
    assert file.bits_per_weight == pytest.approx(bits + 1 if bits else 16, abs=0.1)


def test_sizes_of_a_nested_config_are_found_and_limited_by_the_table(tmp_path):
    path = write_mlx(tmp_path / "nested", "qwen2")
    nested = {"text_config": {"vocab_size": 120, "max_position_embeddings": 77}}
    (path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", **nested}))
    (file,) = open_files([str(path)])
    assert (file.vocab_size, file.context_tokens) == (100, 77)


def test_edges_own_artefacts_and_equal_names_are_told_apart(demo_out, tmp_path):
    names = ("mlx-fp16", "mlx-int4", "gguf-f16.gguf", "gguf-q5_k_m.gguf")
    files = open_files([str(demo_out / name) for name in names] * 2)
    assert [file.recipe.precision for file in files] == ["FP16", "INT4", "FP16", "Q5_K_M"]
    recipes = [RECIPES["mlx-fp16"]]
    (as_converted,) = artefact_targets(open_checkpoint("demo"), recipes, tmp_path, peers=False)
    assert {common_model(files), *(file.model for file in files)} == {as_converted.model}
    write_mlx(tmp_path / "a" / "same", "qwen2")
    write_mlx(tmp_path / "b" / "same", "mamba")
    pair = open_files([str(tmp_path / folder / "same") for folder in "ab"])
    assert [file.recipe.name for file in pair] == ["same (same)", "same (same) 2"]


def test_a_single_model_is_converted_or_measured_as_it_is(demo_out, tmp_path):
    assert is_measured_as_is(str(demo_out / "mlx-int4"))
    assert is_measured_as_is(str(demo_out / "gguf-f16.gguf"))
    assert is_measured_as_is(str(write_mlx(tmp_path / "x", "qwen2")))
    others = ("demo", "smollm2", "owner/name", str(tmp_path), str(demo_out / "mlx-fp16"))
    assert not any(map(is_measured_as_is, others))

"""The quality in a row: measured in a process of its own, judged by what its precision may cost."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge.bench.quality import quality_fault, quality_job
from edge.bench.row import NO_QUALITY, Context, build_row
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.errors import EdgeError
from edge.profile.profile import Quality
from tests.bench.test_row import JOB, SUBJECT, THREE, process

TOKENS = 512
NAMES = ("mlx-fp16", "gguf-f16", "gguf-q5_k_m")


def measured(paths, folder):
    return quality_job(open_checkpoint("demo"), paths, folder, threads=2, tokens=TOKENS)


@pytest.fixture(scope="module")
def found(demo_out, tmp_path_factory):
    paths = {name: RECIPES[name].path_in(demo_out) for name in NAMES}
    return measured(paths, tmp_path_factory.mktemp("scores"))


def row_of(context, **changes):
    return build_row(SUBJECT, replace(JOB, **changes), [process(THREE)], context)


def test_what_a_profile_keeps(found):
    assert set(found) == set(NAMES)
    assert found["mlx-fp16"]["kl_mean"] == 0
    assert found["gguf-f16"]["kl_mean"] < found["gguf-q5_k_m"]["kl_mean"] / 100
    for record in found.values():
        assert record["tokens"] == TOKENS - 1
        assert record["reference"] == "mlx-fp16"
        assert record["corpus"] and len(record["corpus_sha256"]) == 64
        assert record["reasons"] == ["one window has no spread: no standard error and no "
                                     "interval; use more tokens"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_edge_makes_is_right(found, name):
    assert quality_fault(found[name], RECIPES[name].precision) is None


def test_no_artefact_is_better_than_it_says(found):
    """Five bits that call themselves more are found out."""
    for precision in ("FP16", "Q8_0"):
        assert "wrong predictions" in quality_fault(found["gguf-q5_k_m"], precision)


def test_damage_is_found(demo_out, tmp_path):
    """One matrix of twenty-eight is upside down; the file is whole and of the right shapes."""
    path = tmp_path / "mlx-fp16-damaged"
    shutil.copytree(RECIPES["mlx-fp16"].path_in(demo_out), path)
    (file,) = path.glob("*.safetensors")
    tensors = load_file(file)
    name = "model.layers.2.mlp.down_proj.weight"
    save_file({**tensors, name: np.ascontiguousarray(tensors[name][::-1])}, file, {"format": "mlx"})
    sound = RECIPES["mlx-fp16"].path_in(demo_out)
    record = measured({"mlx-fp16": sound, "damaged": path}, tmp_path)["damaged"]
    assert "INT6 can account for" in quality_fault(record, "INT6")


# The demo's artefacts on 4096 tokens of the sample, in nats per token.
MEASURED = {
    "FP16": 2.0e-6, "BF16": 5.7e-5, "Q8_0": 1.3e-3, "INT8": 5.7e-4, "Q6_K": 7.7e-3, "INT6": 8.5e-3,
    "Q5_0": 0.033, "INT5": 0.034, "Q4_0": 0.11, "INT4": 0.154, "MIXED_4_6": 0.115, "INT3": 0.76,
    "Q2_K": 1.0, "INT2": 3.7,
}  # fmt: skip


@pytest.mark.parametrize("precision", MEASURED)
def test_the_bounds_let_rounding_pass_and_little_more(precision):
    record = {"perplexity": 5.0, "reference": "mlx-fp16"}
    assert quality_fault({**record, "kl_mean": MEASURED[precision]}, precision) is None
    assert quality_fault({**record, "kl_mean": 20 * MEASURED[precision] + 0.01}, precision)
    assert quality_fault({**record, "kl_mean": 7.0}, precision)


def test_no_number_is_a_fault_and_no_reference_is_none():
    nothing = {"kl_mean": None, "perplexity": None, "reference": "mlx-fp16"}
    assert "no finite numbers" in quality_fault(nothing, "INT4")
    assert quality_fault({**nothing, "perplexity": 5.0, "reference": None}, "INT4") is None


def test_a_row_has_it_and_is_judged_by_it():
    record = {"perplexity": 5.0, "kl_mean": 0.1, "reference": "mlx-fp16", "reasons": ["a reason"]}
    row = row_of(Context(quality={SUBJECT.artefact: record}))
    assert row.verdict == "VALID"
    assert row.quality == Quality(perplexity=5.0, kl_mean=0.1, reference="mlx-fp16")
    assert "quality: a reason" in row.reasons
    row = row_of(Context(quality={SUBJECT.artefact: {**record, "kl_mean": 3.0}}))
    assert row.verdict == "INVALID"
    assert any(reason.startswith("wrong predictions: 3 nats") for reason in row.reasons)


def test_what_is_not_measured_has_its_sentence():
    assert NO_QUALITY in row_of(Context()).reasons
    assert "it broke" in row_of(Context(no_quality="it broke")).reasons
    record = {"perplexity": 5.0, "kl_mean": math.inf, "reference": "mlx-fp16", "reasons": []}
    row = row_of(Context(quality={SUBJECT.artefact: record}), kv_bits=4)
    assert row.quality is None
    assert any("cache of 4 bits" in reason for reason in row.reasons)


def test_what_cannot_be_measured_is_a_sentence(demo_out, tmp_path):
    (tmp_path / "file").write_text("no model")
    paths = {"mlx-fp16": RECIPES["mlx-fp16"].path_in(demo_out), "gguf-f16": tmp_path / "file"}
    with pytest.raises(
        EdgeError, match=r"the quality could not be computed \(.*no GGUF|not a GGUF"
    ):
        measured(paths, tmp_path)

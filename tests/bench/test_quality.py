"""The quality in a row is judged by what its precision may cost."""

import math
from dataclasses import replace

import pytest

from edge.bench.gate import quality_fault
from edge.bench.row import NO_QUALITY, Context, build_row
from edge.profile.profile import Quality
from tests.bench.test_row import JOB, SUBJECT, THREE, process


def row_of(context, **changes):
    return build_row(SUBJECT, replace(JOB, **changes), [process(THREE)], context)


# The demo's artefacts on 4096 tokens of the sample, in nats per token.
MEASURED = {
    "FP16": 2.0e-6, "BF16": 5.7e-5, "Q8_0": 1.3e-3, "INT8": 5.7e-4, "Q6_K": 7.7e-3, "INT6": 8.5e-3,
    "Q5_0": 0.033, "INT5": 0.034, "Q4_0": 0.11, "INT4": 0.154, "MIXED_4_6": 0.115, "INT3": 0.76,
    "Q2_K": 1.0, "INT2": 3.7,
}  # fmt: skip


@pytest.mark.parametrize("precision", MEASURED)
def test_bounds_let_rounding_pass_and_little_more(precision):
    record = {"perplexity": 5.0, "reference": "mlx-fp16"}
    assert quality_fault({**record, "kl_mean": MEASURED[precision]}, precision) is None
    assert quality_fault({**record, "kl_mean": 20 * MEASURED[precision] + 0.01}, precision)
    assert quality_fault({**record, "kl_mean": 7.0}, precision)


def test_logits_that_are_not_finite_are_a_fault():
    nothing = {"kl_mean": None, "perplexity": None, "reference": "mlx-fp16"}
    assert "not finite" in quality_fault(nothing, "INT4")
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


def test_missing_quality_has_its_sentence():
    assert NO_QUALITY in row_of(Context()).reasons
    assert "it broke" in row_of(Context(no_quality="it broke")).reasons
    record = {"perplexity": 5.0, "kl_mean": math.inf, "reference": "mlx-fp16", "reasons": []}
    row = row_of(Context(quality={SUBJECT.artefact: record}), kv_bits=4)
    assert row.quality is None
    assert any("cache of 4 bits" in reason for reason in row.reasons)

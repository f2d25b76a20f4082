import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from edge.bench.row import build_row
from edge.device.describe import Bandwidth
from edge.profile.profile import Quality, Workload
from edge.profile.verdict import summarise
from edge.stats import interval
from tests.bench.fakes import (
    FACTS,
    GATE,
    JOB,
    PC,
    TARGET,
    THREE,
    context,
    process,
    samples_of,
    trial_at,
    worked,
)


def row_of(trials=THREE, around=None, job=JOB, target=TARGET, **changes):
    return build_row(target, job, [process(trials, **changes)], around or context())


def has(row, *words):
    return any(all(word in reason for word in words) for reason in row.reasons)


def test_quantities_are_medians_over_the_counted_trials():
    warmup = trial_at(0, 50.0, warmup=True)
    row = row_of([warmup, trial_at(1, 1.0), trial_at(2, 1.0), trial_at(3, 1.05)])
    assert row.verdict == "VALID"
    assert (row.decode_tok_s.median, row.decode_tok_s.n) == (1.0, 3)
    assert row.prefill_tok_s.median == 5.0
    assert row.ttft_s.median == 2.0
    assert [trial.warmup for trial in row.trials] == [True, False, False, False]
    assert row.token_latency_ms == pytest.approx({"p50": 1000.0, "p90": 1050.0, "p99": 1050.0})
    assert row.bytes_per_token == 1000 + 101 * 10
    joint = row_of(job=replace(JOB, workload=Workload(10, 3, 100, joint=True)))
    assert joint.bytes_per_token == 1000 + 111 * 10  # the cache holds the prompt too
    batch = row_of(job=replace(JOB, workload=Workload(10, 3, 100, batch=4)))
    assert batch.bytes_per_token == 1000 // 4 + 101 * 10
    assert batch.step_bytes == 1000 + 4 * 101 * 10
    json.dumps(msgspec.to_builtins(row), allow_nan=False)


def test_a_summary_has_centre_and_spread_of_what_was_measured():
    found = summarise([1.0, None, 2.0, 6.0], range(4))
    assert (found.median, found.mean, found.n) == (2.0, 3.0, 3)
    assert found.sd == pytest.approx(7**0.5)
    one = summarise([4.0], [0])
    assert (one.sd, one.ci95) == (None, None)
    assert summarise([None], [0]) is None


def test_each_process_is_one_observation_of_the_interval():
    peaks = {"peak_memory_bytes": 9, "peak_device_bytes": 4}
    runs = [
        process([trial_at(10 * r + i, 1.0 + r / 10) for i in range(2)], r, **(peaks if r else {}))
        for r in range(3)
    ]
    row = build_row(TARGET, JOB, runs, context(3))
    means = [1 / (1.0 + r / 10) for r in range(3)]
    assert row.decode_tok_s.ci95 == pytest.approx(interval(means))
    assert row.decode_tok_s.n == 6
    assert [p.round for p in row.processes] == [0, 1, 2]
    assert (row.peak_memory_bytes, row.peak_device_bytes) == (9, 4)  # the most of any round
    assert [t.round for t in row.trials] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"target": replace(TARGET, notes=("lm_head is float16.",))}, ["lm_head is float16"]),
        ({"facts": msgspec.structs.replace(FACTS, remarks=["half speed"])}, ["half speed"]),
        ({"job": replace(JOB, workload=Workload(0, 3))}, ["prefill_tok_s and ttft_s were not"]),
        ({"job": replace(JOB, workload=Workload(10, 0))}, ["decode_tok_s needs"]),
        ({}, ["power_w, joules_per_token", "there is none"]),
        ({"meter": worked("fake: it died")}, ["no sample of fake", "fake: it died"]),
    ],
)
def test_missing_quantities_and_remarks_are_reasons(fields, words):
    row = row_of(**fields)
    assert has(row, *words)
    assert (row.power_w, row.joules_per_token, row.verdict) == (None, None, "VALID")


def test_energy_is_that_of_the_windows():
    row = row_of(THREE, context(idle_w=5.0), meter=worked(), samples=samples_of(7.0))
    found = {
        "power_w": 7.0,
        "joules_per_token": 7.0,
        "joules_per_token_net": 2.0,
        "prefill_power_w": 7.0,
        "prefill_joules_per_token": 1.4,
    }
    assert {name: getattr(row, name).median for name in found} == pytest.approx(found)
    assert (row.power.source, row.power.boundary, row.power.flags) == ("fake", "CPU and GPU", [])


def test_partly_missing_power_and_changed_idle_power_are_reasons():
    row = row_of(meter=worked(), samples=samples_of(7.0, last_s=250))
    assert row.power_w.n == 2
    assert has(row, "a part of the trials")
    assert row.joules_per_token_net is None
    assert has(row, "joules_per_token_net: ", "--idle")
    changed = context(idle_w=5.0, idle_drift="idle power changed")
    assert has(row_of(THREE, changed, meter=worked(), samples=samples_of(7.0)), "idle power ch")
    assert not has(row_of(THREE, changed), "idle power changed")


def test_ranks_beside_each_other_are_a_warning():
    row = row_of(around=context(beside=["1 more of --each measure on this machine"]))
    assert row.verdict == "WARN"
    assert has(row, "1 more of --each measure on this machine")


def test_a_row_that_failed_in_one_round_has_no_figures():
    runs = [process(THREE, 0), process([trial_at(4)], 1, failure="it died.")]
    row = build_row(TARGET, JOB, runs, context(3))
    assert row.verdict == "INVALID"
    assert row.reasons[0] == "it died (round 2 of 3)"
    figures = (row.decode_tok_s, row.prefill_tok_s, row.ttft_s, row.power_w, row.token_latency_ms)
    assert figures == (None,) * 5
    assert len(row.trials) == 4
    assert [p.failed for p in row.processes] == [False, True]


def test_reasons_do_not_name_folders():
    job = replace(JOB, path="/Users/ann/models/x/mlx-int4")
    failure = f"/Users/ann/models/x/mlx-int4/model.safetensors differs from {Path.home()}/m"
    found = row_of([], job=job, failure=failure).reasons[0]
    assert found == "mlx-int4/model.safetensors differs from ~/m"


def quality_row(kl_mean=0.1, job=JOB):
    record = {"perplexity": 5.0, "kl_mean": kl_mean, "reference": "mlx-fp16", "reasons": ["few."]}
    return row_of(THREE, context(quality={"mlx-int4": record}), job)


def test_quality_is_judged_or_has_a_reason():
    row = quality_row()
    assert row.verdict == "VALID"
    assert row.quality == Quality(perplexity=5.0, kl_mean=0.1, reference="mlx-fp16")
    assert "quality: few" in row.reasons
    row = quality_row(kl_mean=3.0)
    assert row.verdict == "INVALID"
    assert row.reasons[0].startswith("wrong predictions: 3 nats")
    row = quality_row(job=replace(JOB, kv_bits=4))
    assert row.quality is None
    assert has(row, "cache of 4 bits")


def test_checked_logits_are_in_the_row_and_wrong_ones_make_it_invalid():
    row = row_of(gate=GATE)
    assert (row.gate, row.verdict) == (GATE, "VALID")
    wrong = msgspec.structs.replace(GATE, worst_error=None)
    row = row_of(gate=wrong)
    assert (row.gate, row.verdict) == (wrong, "INVALID")
    assert row.reasons[0].startswith("wrong logits: at position 7 the timed calls' are infinitely")
    digest = {"logits_per_position": 50, "logits": [[0.0, 1.0, 2.0]], "settings": ["x"]}
    references = {"": digest, "x": digest}
    row = row_of(around=context(references=references), gate=GATE, logits=digest)
    assert (row.gate.reference_error, row.gate.reference_bound) == (0.0, 0.05)
    assert row.reasons[0].startswith("wrong settings")


GPU = replace(
    PC,
    gpu_name="NVIDIA H100",
    memory_bandwidth=Bandwidth(1e-6, "measured read"),
    gpu_memory_bandwidth=Bandwidth(300.0, "driver"),
)


def roofline_row(device, **changes):
    return row_of(THREE, context(device=device), **changes)


@pytest.mark.parametrize(("source", "verdict"), [("table", "INVALID"), ("measured", "WARN")])
def test_a_rate_above_the_memory_bandwidth_is_an_error_unless_that_was_measured(source, verdict):
    row = roofline_row(replace(PC, memory_bandwidth=Bandwidth(3e-6, source)))
    assert row.bandwidth_fraction == pytest.approx(2010 / 3000)
    assert row.verdict == "VALID"
    row = roofline_row(replace(PC, memory_bandwidth=Bandwidth(1e-6, source)))
    assert row.bandwidth_fraction == pytest.approx(2.01)
    assert row.verdict == verdict
    assert "0.0 GB/s, 201% of the 0.0 GB/s of the memory: check --bandw" in row.reasons[0]
    row = roofline_row(replace(PC, memory_bandwidth=Bandwidth(1e-6, source), cache_bytes=10**6))
    assert "bandwidth_fraction: a step's 0 MB fit in the cache of 1 MB" in row.reasons[0]
    assert row.bandwidth_fraction is None


@pytest.mark.parametrize("name", ["GPU", "NVIDIA H100"])
def test_a_gpu_is_compared_with_its_own_bandwidth(name):
    # Its cache is 130 MB: a token must read more than that.
    facts = msgspec.structs.replace(FACTS, device=name, weight_bytes_per_token=200_000_000)
    row = roofline_row(GPU, facts=facts)
    assert row.bandwidth_fraction == pytest.approx(0.2 / 300, rel=1e-3)
    slow = replace(GPU, gpu_memory_bandwidth=Bandwidth(0.1, "driver"))
    assert roofline_row(slow, facts=facts).verdict == "INVALID"
    assert roofline_row(GPU).verdict == "WARN"  # on the CPU, whose bandwidth was measured
    row = roofline_row(replace(PC, memory_bandwidth=None, remarks=("no table",)))
    assert row.bandwidth_fraction is None
    assert "bandwidth_fraction: no table" in row.reasons
    assert row.verdict == "VALID"

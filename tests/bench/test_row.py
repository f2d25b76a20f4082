import json
from dataclasses import replace

import pytest

from edge.bench.engines.engine import EngineFacts
from edge.bench.job import Job
from edge.bench.row import Subject, build_row
from edge.bench.runner import Outcome
from edge.bench.statistics import summarise
from edge.bench.trial import Trial
from edge.bench.workload import Workload
from edge.power.meter import Sample
from edge.power.none import NoMeter

SUBJECT = Subject("mlx-int4", "MLX", "INT4", 1000, 4.5)
JOB = Job("mlx", "x", Workload(10, 3, 100), 50, 0, 3, 1, 2)
FACTS = EngineFacts("cpu", "float32", "float32", None, 1000, 10)
SECOND = 10**9
NO_METER = NoMeter("power was not measured: there is none")


class FakeMeter:
    source = "fake"
    unavailable = None


def trial(number, seconds_per_token=1.0, warmup=False):
    start = number * 100 * SECOND
    stamps = tuple(int(start + (5 + i * seconds_per_token) * SECOND) for i in range(3))
    return Trial(number, warmup, start, start + 2 * SECOND, stamps, 10)


def outcome(trials, **changes):
    fields = {"load_s": 0.5, "facts": FACTS, "trials": trials, "peak_memory_bytes": 7, **changes}
    return Outcome(JOB, **fields)


def test_quantities_are_medians_over_the_counted_trials():
    trials = [trial(0, 50.0, warmup=True), trial(1, 1.0), trial(2, 1.0), trial(3, 1.05)]
    row = build_row(SUBJECT, outcome(trials), NO_METER, [])
    assert row.verdict == "VALID"
    assert (row.decode_tok_s.median, row.decode_tok_s.n) == (1.0, 3)
    assert row.prefill_tok_s.median == 5.0
    assert row.ttft_s.median == 2.0
    assert len(row.trials) == 4  # the warm-up is kept, marked
    assert row.trials[0]["warmup"]
    assert row.bytes_per_token == 1000 + 101 * 10
    json.dumps(row.trials, allow_nan=False)


def test_what_the_conversion_lost_stands_in_the_row():
    subject = replace(SUBJECT, notes=("lm_head is float16.",))
    row = build_row(subject, outcome([trial(1), trial(2), trial(3)]), NO_METER, [])
    assert "lm_head is float16" in row.reasons
    assert row.verdict == "VALID"


def test_missing_power_is_null_with_its_reason():
    row = build_row(SUBJECT, outcome([trial(1), trial(2), trial(3)]), NO_METER, [])
    assert row.power_w is None
    assert row.joules_per_token is None
    assert any("there is none" in reason for reason in row.reasons)


def test_energy_is_that_of_the_decode_window():
    trials = [trial(1), trial(2), trial(3)]
    # 7 W all the time, in one-second samples.
    samples = [Sample(t * SECOND, (t + 1) * SECOND, {"CPU": 3.0, "GPU": 4.0}) for t in range(400)]
    row = build_row(SUBJECT, outcome(trials), FakeMeter(), samples)
    assert row.power_w.median == pytest.approx(7.0)
    assert row.joules_per_token.median == pytest.approx(7.0)
    assert row.trials[0]["energy_j"] == pytest.approx({"CPU": 6.0, "GPU": 8.0})
    assert row.trials[0]["energy_coverage"] == 1.0


def test_samples_that_miss_the_window_are_no_zero():
    row = build_row(
        SUBJECT, outcome([trial(1)] * 3), FakeMeter(), [Sample(0, SECOND, {"CPU": 1.0})]
    )
    assert row.power_w is None
    assert any("no sample of fake" in reason for reason in row.reasons)


@pytest.mark.parametrize(
    ("trials", "words"),
    [
        ([trial(1), trial(2)], "only 2 trials"),
        ([trial(1, 1.0), trial(2, 1.0), trial(3, 2.0)], "varies by"),
        ([trial(i, 0.001) for i in (1, 2, 3)], "too short"),
    ],
)
def test_what_makes_a_figure_weak_is_said(trials, words):
    row = build_row(SUBJECT, outcome(trials), NO_METER, [])
    assert row.verdict == "WARN"
    assert any(words in reason for reason in row.reasons)


def test_a_failed_row_is_invalid_and_keeps_what_it_had():
    row = build_row(SUBJECT, outcome([trial(1)], failure="it died"), NO_METER, [])
    assert row.verdict == "INVALID"
    assert row.reasons[0] == "it died"
    assert len(row.trials) == 1
    quantities = (row.decode_tok_s, row.prefill_tok_s, row.ttft_s, row.power_w)
    assert quantities == (None,) * 4


def test_a_reason_names_the_artefact_not_its_folder():
    job = replace(JOB, path="/Users/ann/models/x/mlx-int4")
    broken = Outcome(job, failure="/Users/ann/models/x/mlx-int4/model.safetensors is cut off")
    row = build_row(SUBJECT, broken, NO_METER, [])
    assert row.reasons[0] == "mlx-int4/model.safetensors is cut off"


def test_prefill_is_judged_as_well():
    trials = [replace(trial(i), prefill_end_ns=i * 100 * SECOND + i * SECOND) for i in (1, 2, 3)]
    row = build_row(SUBJECT, outcome(trials), NO_METER, [])
    assert row.verdict == "WARN"
    assert any(reason.startswith("prefill varies by") for reason in row.reasons)


def test_what_an_engine_remarks_is_among_the_reasons():
    facts = replace(FACTS, remarks=("half speed here",))
    row = build_row(SUBJECT, outcome([trial(1)] * 3, facts=facts), NO_METER, [])
    assert "half speed here" in row.reasons


def test_summary():
    quantity = summarise([1.0, None, 2.0, 6.0])
    assert (quantity.median, quantity.mean, quantity.n) == (2.0, 3.0, 3)
    assert quantity.sd == pytest.approx(7**0.5)
    assert summarise([4.0]).sd is None
    assert summarise([None]) is None

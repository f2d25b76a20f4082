import json
from dataclasses import replace

import msgspec
import pytest

from edge.bench.job import Job
from edge.bench.rounds import ProcessRun
from edge.bench.row import Context, Subject, build_row
from edge.bench.runner import Outcome
from edge.bench.statistics import summarise
from edge.bench.workload import Workload
from edge.device.describe import Bandwidth, Device
from edge.device.state import State
from edge.power.choose import NoMeter
from edge.power.meter import Sample
from edge.profile.profile import PowerSource
from tests.bench.fakes import FACTS, NS, samples_of, trial

SUBJECT = Subject("mlx-int4", "MLX", "INT4", 1000, 4.5)
JOB = Job("mlx", "x", Workload(10, 3, 100), 50, 0, 3, 1, 2)
NO_METER = NoMeter("power was not measured: there is none")
TOO_SHORT_FOR_ENERGY = "energy comes from windows of"


class Watts:
    source, boundary, unavailable = "fake", "CPU and GPU", None

    def __init__(self, *flags):
        self.flags = flags


def outcome(trials, **changes):
    fields = {"load_s": 0.5, "facts": FACTS, "trials": trials, "peak_memory_bytes": 7, **changes}
    return Outcome(JOB, **fields)


def process(trials, number=0, meter=NO_METER, samples=(), **changes):
    said = outcome([replace(t, round=number) for t in trials], **changes)
    return ProcessRun(number, said, meter, samples, State(), State())


def row_of(trials, context=None, **changes):
    return build_row(SUBJECT, JOB, [process(trials, **changes)], context)


THREE = [trial(1), trial(2), trial(3)]


def test_quantities_are_medians_over_the_counted_trials():
    row = row_of([trial(0, 50.0, warmup=True), trial(1, 1.0), trial(2, 1.0), trial(3, 1.05)])
    assert row.verdict == "VALID"
    assert (row.decode_tok_s.median, row.decode_tok_s.n) == (1.0, 3)
    assert row.prefill_tok_s.median == 5.0
    assert row.ttft_s.median == 2.0
    assert len(row.trials) == 4  # the warm-up is kept, marked
    assert row.trials[0].warmup
    assert row.bytes_per_token == 1000 + 101 * 10
    json.dumps(msgspec.to_builtins(row.trials), allow_nan=False)


def test_a_joint_workloads_cache_holds_the_prompt_too():
    job = replace(JOB, workload=Workload(10, 3, 100, joint=True))
    row = build_row(SUBJECT, job, [process(THREE)])
    assert row.bytes_per_token == 1000 + 111 * 10


def test_the_interval_takes_each_process_as_one():
    """Three processes that agree within themselves: spread between them is what counts."""
    runs = [
        process([trial(10 * r + i, 1.0 + r / 10) for i in range(2)], number=r) for r in range(3)
    ]
    row = build_row(SUBJECT, JOB, runs, Context(rounds=3))
    means = [1 / (1.0 + r / 10) for r in range(3)]
    assert row.decode_tok_s.ci95 == pytest.approx(summarise(means).ci95)
    assert row.decode_tok_s.n == 6
    assert [p.round for p in row.processes] == [0, 1, 2]
    assert [t.round for t in row.trials] == [0, 0, 1, 1, 2, 2]


def test_the_time_of_single_tokens_is_summed_up():
    row = row_of([trial(0, 9.0, warmup=True), trial(1, 1.0), trial(2, 2.0)])
    assert row.token_latency_ms == pytest.approx({"p50": 1500.0, "p90": 2000.0, "p99": 2000.0})


def test_what_the_conversion_lost_stands_in_the_row():
    subject = replace(SUBJECT, notes=("lm_head is float16.",))
    row = build_row(subject, JOB, [process(THREE)])
    assert "lm_head is float16" in row.reasons
    assert row.verdict == "VALID"


def test_memory_of_process_and_device_are_the_most_of_any_round():
    runs = [
        process(THREE, 0, peak_memory_bytes=9, peak_device_bytes=4),
        process(THREE, 1, peak_memory_bytes=8, peak_device_bytes=5),
    ]
    row = build_row(SUBJECT, JOB, runs, Context(rounds=2))
    assert (row.peak_memory_bytes, row.peak_device_bytes) == (9, 5)


# --- energy


def test_missing_power_is_null_with_its_reason():
    row = row_of(THREE)
    assert row.power_w is None
    assert row.joules_per_token is None
    assert row.power is None
    assert any("there is none" in reason for reason in row.reasons)


def test_energy_is_that_of_the_windows():
    row = row_of(THREE, Context(idle_w=5.0), meter=Watts(), samples=samples_of(7.0))
    assert row.power_w.median == pytest.approx(7.0)
    assert row.joules_per_token.median == pytest.approx(7.0)
    assert row.joules_per_token_net.median == pytest.approx(2.0)
    assert row.prefill_power_w.median == pytest.approx(7.0)
    assert row.prefill_joules_per_token.median == pytest.approx(1.4)
    assert row.trials[0].energy_j == pytest.approx({"CPU": 6.0, "GPU": 8.0})
    assert row.trials[0].energy_coverage == 1.0
    assert row.trials[0].prefill_energy.tokens == 10
    assert row.power == PowerSource("fake", "CPU and GPU")


def test_without_idle_power_there_is_no_net():
    row = row_of(THREE, meter=Watts(), samples=samples_of(7.0))
    assert row.joules_per_token_net is None
    assert any("--idle" in reason for reason in row.reasons)


def test_samples_that_miss_the_window_are_no_zero():
    row = row_of(THREE, meter=Watts(), samples=[Sample(0, NS, {"CPU": 1.0})])
    assert row.power_w is None
    assert any("no sample of fake" in reason for reason in row.reasons)


def test_a_meter_that_gave_nothing_says_what_it_knows():
    row = row_of(THREE, meter=Watts("fake: it died"), samples=[])
    assert any("no sample of fake" in r and "fake: it died" in r for r in row.reasons)


def test_a_part_that_is_missing_is_said_and_the_rest_counts():
    row = row_of(THREE, meter=Watts(), samples=samples_of(7.0, last_s=250))
    assert row.power_w.n == 2
    assert any("a part of the trials" in reason for reason in row.reasons)


def test_a_baseline_that_moved_is_a_doubt():
    context = Context(idle_w=5.0, idle_doubt="idle power moved")
    assert (
        "idle power moved" in row_of(THREE, context, meter=Watts(), samples=samples_of(7.0)).reasons
    )
    assert "idle power moved" not in row_of(THREE, context).reasons


# --- failures


def test_a_failed_row_is_invalid_and_keeps_what_it_had():
    row = row_of([trial(1)], failure="it died")
    assert row.verdict == "INVALID"
    assert row.reasons[0] == "it died"
    assert len(row.trials) == 1
    quantities = (row.decode_tok_s, row.prefill_tok_s, row.ttft_s, row.power_w)
    assert quantities == (None,) * 4
    assert row.token_latency_ms is None


def test_one_failed_round_withholds_the_figures_of_all():
    runs = [process(THREE, 0), process([trial(4)], 1, failure="it died.")]
    row = build_row(SUBJECT, JOB, runs, Context(rounds=3))
    assert row.verdict == "INVALID"
    assert row.reasons[0] == "it died (round 2 of 3)"
    assert row.decode_tok_s is None
    assert len(row.trials) == 4
    assert [p.failed for p in row.processes] == [False, True]


def test_a_reason_names_the_artefact_not_its_folder():
    job = replace(JOB, path="/Users/ann/models/x/mlx-int4")
    broken = Outcome(job, failure="/Users/ann/models/x/mlx-int4/model.safetensors is cut off")
    run = ProcessRun(0, broken, NO_METER, [], State(), State())
    row = build_row(SUBJECT, job, [run])
    assert row.reasons[0] == "mlx-int4/model.safetensors is cut off"


def test_what_an_engine_remarks_is_among_the_reasons():
    facts = replace(FACTS, remarks=("half speed here",))
    assert "half speed here" in row_of(THREE, facts=facts).reasons


# --- the roofline

PC = Device("PC", "x86_64", 8, 16, 2**36, "Linux 6.18", memory_bandwidth=Bandwidth(1e-5, "table"))


def fraction_of(device, **changes):
    return row_of(THREE, Context(device=device), **changes)


def test_the_fraction_of_the_bandwidth():
    row = fraction_of(PC)  # 2010 bytes a token, 1 tok/s, of 10000 bytes a second
    assert row.bandwidth_fraction == pytest.approx(0.201)
    assert row.verdict == "VALID"


@pytest.mark.parametrize(
    ("source", "verdict"), [("table", "INVALID"), ("given", "INVALID"), ("measured read", "WARN")]
)
def test_above_the_ceiling_something_is_wrong(source, verdict):
    row = fraction_of(replace(PC, memory_bandwidth=Bandwidth(1e-6, source)))
    assert row.bandwidth_fraction == pytest.approx(2.01)
    assert row.verdict == verdict
    assert any("201%" in reason for reason in row.reasons)


GPU = replace(
    PC,
    gpu_name="NVIDIA X",
    memory_bandwidth=Bandwidth(1e-6, "measured read"),
    gpu_memory_bandwidth=Bandwidth(300.0, "driver"),
)


@pytest.mark.parametrize("says", ["GPU", "NVIDIA X"])
def test_a_gpu_with_memory_of_its_own_has_its_own_ceiling(says):
    """Its cache is 130 MB: a token must read more than that."""
    facts = replace(FACTS, device=says, weight_bytes_per_token=200_000_000)
    row = fraction_of(GPU, facts=facts)
    assert row.bandwidth_fraction == pytest.approx(0.2 / 300, rel=1e-3)
    slow = replace(GPU, gpu_memory_bandwidth=Bandwidth(0.1, "driver"))
    assert fraction_of(slow, facts=facts).verdict == "INVALID"


def test_the_processors_own_figures_do_not_use_the_gpus_ceiling():
    row = fraction_of(GPU)
    assert row.bandwidth_fraction == pytest.approx(2.01)
    assert row.verdict == "WARN"


def test_without_a_bandwidth_the_fraction_is_null_with_its_reason():
    row = fraction_of(replace(PC, memory_bandwidth=None, remarks=("nobody knows",)))
    assert row.bandwidth_fraction is None
    assert "bandwidth_fraction: nobody knows" in row.reasons
    assert row.verdict == "VALID"


def test_summary():
    quantity = summarise([1.0, None, 2.0, 6.0])
    assert (quantity.median, quantity.mean, quantity.n) == (2.0, 3.0, 3)
    assert quantity.sd == pytest.approx(7**0.5)
    assert summarise([4.0]).sd is None
    assert summarise([None]) is None

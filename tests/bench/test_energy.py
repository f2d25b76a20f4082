import pytest

from edge.bench.energy import KEPT_SAMPLES, power_series, with_energy
from edge.bench.trial import make_trial
from edge.power.meter import Sample
from edge.profile.trial import PowerSeries, ThermalChange
from tests.bench.fakes import NS, trial_at


def steady(begin_s, end_s, **watts):
    return [
        Sample(t * NS, (t + 1) * NS, {rail: float(w) for rail, w in watts.items()})
        for t in range(begin_s, end_s)
    ]


def test_prefill_and_decode_have_energy_of_their_own():
    samples = steady(0, 3, CPU=10, GPU=2) + steady(3, 20, CPU=3, GPU=4)
    trial = with_energy(trial_at(0), samples, "fake")
    assert trial.prefill_energy.power_w == pytest.approx(12.0)
    assert trial.prefill_energy.joules_per_token == pytest.approx(2.4)  # 24 J, 10 prompt tokens
    assert trial.decode_energy.power_w == pytest.approx(7.0)
    assert trial.decode_energy.joules == trial.energy_j == pytest.approx({"CPU": 6.0, "GPU": 8.0})
    assert trial.decode_energy.joules_per_token == pytest.approx(7.0)  # 14 J, the last two tokens
    assert trial.energy_coverage == 1.0


def test_joules_per_token_of_several_passes_count_every_token_but_the_first():
    trial = make_trial(0, [], [(0, NS, 2 * NS), (3 * NS, 4 * NS, 5 * NS)])
    trial = with_energy(trial, steady(0, 10, CPU=6), "fake")
    assert trial.prefill_energy is None
    assert (trial.decode_energy.window_s, trial.decode_energy.tokens) == (5.0, 5)
    assert trial.decode_energy.joules_per_token == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (steady(50, 60, CPU=1), "no sample of fake"),
        (steady(0, 6, CPU=1), "cover 50% of a window"),
        ([Sample(0, 20 * NS, {"GPU": 5.0}, beside={"CPU": 0.0})], "CPU's counter of fake failed"),
    ],
)
def test_energy_without_full_coverage_is_null_with_its_reason(samples, words):
    assert with_energy(trial_at(0), [], "fake") == trial_at(0)
    decode = with_energy(trial_at(0), samples, "fake").decode_energy
    assert words in decode.missing
    assert (decode.power_w, decode.joules_per_token) == (None, None)


def test_many_samples_are_merged_and_their_joules_kept():
    count = 2 * KEPT_SAMPLES + 100
    many = [Sample(i * NS, (i + 1) * NS, {"CPU": 0.5, "GPU": i * 1.0}) for i in range(count)]
    kept = power_series(many)
    assert len(kept.begin_ns) <= KEPT_SAMPLES
    seconds = [(end - begin) / 1e9 for begin, end in zip(kept.begin_ns, kept.end_ns, strict=True)]
    for rail in ("CPU", "GPU"):
        joules = sum(s * mw / 1000 for s, mw in zip(seconds, kept.milliwatts[rail], strict=True))
        assert joules == pytest.approx(sum(s.joules[rail] for s in many), rel=1e-6)


def test_a_power_series_has_milliwatts_and_changes_of_the_thermal_level():
    levels = ["nominal", "nominal", "heavy", None, "nominal"]
    many = [
        Sample(i * NS, (i + 1) * NS, {"GPU" if i == 2 else "CPU": 0.5}, thermal=level)
        for i, level in enumerate(levels)
    ]
    changes = ((0, "nominal"), (2 * NS, "heavy"), (4 * NS, "nominal"))
    assert power_series(many) == PowerSeries(
        begin_ns=[i * NS for i in range(5)],
        end_ns=[i * NS for i in range(1, 6)],
        milliwatts={"CPU": [500, 500, 0, 500, 500], "GPU": [0, 0, 500, 0, 0]},
        thermal=[ThermalChange(*change) for change in changes],
    )
    assert power_series([Sample(5, 5, {"CPU": 1.0})]) is None

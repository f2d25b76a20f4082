import pytest

from edge.bench.energy import TrialEnergy, trial_energy
from edge.bench.trial import Trial
from edge.power.meter import Sample
from tests.bench.fakes import NS, trial


def steady(begin_s, end_s, **watts):
    return [
        Sample(t * NS, (t + 1) * NS, {rail: float(w) for rail, w in watts.items()})
        for t in range(begin_s, end_s)
    ]


def test_prefill_and_decode_are_apart():
    samples = steady(0, 3, CPU=10, GPU=2) + steady(3, 20, CPU=3, GPU=4)
    energy = trial_energy(trial(0), samples, "fake")
    assert energy.prefill.power_w == pytest.approx(12.0)
    assert energy.prefill.joules_per_token == pytest.approx(2.4)  # 24 J, 10 prompt tokens
    assert energy.decode.power_w == pytest.approx(7.0)
    assert energy.decode.energy.joules == pytest.approx({"CPU": 6.0, "GPU": 8.0})
    assert energy.decode.joules_per_token == pytest.approx(7.0)  # 14 J, the last two tokens


def test_joules_of_several_passes_are_over_the_tokens_they_paid_for():
    """Two passes of three tokens, 1 s each: the window holds five steps, the gap's included."""
    passes = ((0, NS, 2 * NS), (3 * NS, 4 * NS, 5 * NS))
    energy = trial_energy(Trial(0, False, (), passes, 0), steady(0, 10, CPU=6), "fake")
    assert energy.prefill is None
    assert (energy.decode.seconds, energy.decode.tokens) == (5.0, 5)
    assert energy.decode.joules_per_token == pytest.approx(6.0)


def test_net_is_gross_less_idle_over_the_same_time():
    decode = trial_energy(trial(0), steady(0, 20, CPU=7), "fake").decode
    assert decode.net_joules_per_token(5.0) == pytest.approx(2.0)
    assert decode.net_joules_per_token(None) is None


def test_without_samples_there_is_no_energy():
    assert trial_energy(trial(0), [], "fake") == TrialEnergy()


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (steady(50, 60, CPU=1), "no sample of fake"),
        (steady(0, 6, CPU=1), "cover 50% of a window"),
        ([Sample(0, 20 * NS, {"GPU": 5.0}, beside={"CPU": 0.0})], "CPU's counter of fake failed"),
    ],
)
def test_what_is_no_total_is_null_with_its_reason(samples, words):
    decode = trial_energy(trial(0), samples, "fake").decode
    assert words in decode.missing
    assert decode.power_w is None
    assert decode.joules_per_token is None
    assert decode.net_joules_per_token(1.0) is None
    assert decode.to_record()["missing"] == decode.missing


def test_the_edges_share_of_a_steady_power_is_nothing():
    decode = trial_energy(trial(0, 1.3), steady(0, 20, CPU=7), "fake").decode
    assert decode.edge_share == 0.0


def test_an_edge_inside_a_jump_is_uncertain():
    samples = steady(0, 5, CPU=1) + steady(5, 8, CPU=50) + steady(8, 20, CPU=1)
    shifted = Trial(0, False, (), ((5 * NS + NS // 2, 7 * NS + NS // 2),), 0)
    decode = trial_energy(shifted, samples, "fake").decode
    assert decode.edge_share > 0.5
    assert decode.to_record()["edge_error_j"] > 0

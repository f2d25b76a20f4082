import pytest
from msgspec.structs import replace

from edge.bench.cooldown import Cooldown
from edge.bench.trial import make_trial, with_energy
from edge.bench.verdict import judge_conditions, judge_energy, judge_speed
from edge.device.state import State
from edge.power.meter import Sample
from edge.profile.profile import Reason
from edge.profile.verdict import warning, worst_first
from tests.bench.fakes import NS, process, trial_at


def warnings_of(reasons, levels=("warning",)):
    listed = list(reasons)
    assert {reason.level for reason in listed} <= set(levels)
    return [reason.text for reason in listed]


@pytest.mark.parametrize(
    ("seconds", "fields", "words", "advice"),
    [
        ([1.0, 1.0], {}, "only 2 trials", "-r 3"),
        ([1.0, 1.0, 2.0], {}, "decode varies by", "close other programs"),
        ([0.001] * 3, {}, "decode window is 0.002 s, too short to quote", "--min-window"),
        ([1.0, 1.01, 0.99, 1.0, 1.01, 5.0], {}, "1 of 6 trials are outliers", "run again"),
        ([1 + i / 50 for i in range(6)], {}, "decode falls by 10%", "--cooldown"),
        ([2 - i / 50 for i in range(6)], {}, "decode rises by 5%", "--cooldown"),
        ([1.0] * 3, {"min_window_s": 3.0}, "decode window is 2 s, shorter than the 3 s", "-n"),
        ([1.0] * 3, {"rounds": 3}, "only 1 of 3 rounds were measured", "the run was stopped"),
        ([1.0, 1.0, 1.01], {"min_window_s": 2.0}, None, None),
        ([1 + i / 1000 for i in range(6)], {}, None, None),
    ],
)
def test_weak_rates_are_warnings_with_advice(seconds, fields, words, advice):
    trials = [trial_at(i, s) for i, s in enumerate(seconds)]
    settings = {"min_window_s": 0.0, "done": 1, "rounds": 1, **fields}
    found = warnings_of(judge_speed(trials, **settings))
    if words is None:
        assert found == []
    else:
        assert any(words in text and advice in text for text in found), found


def test_a_spread_beyond_half_the_median_is_an_error():
    """The median of these rates is 1 token/s, their standard deviation 0.49 or 0.51."""
    for off, level in ((0.49, "warning"), (0.51, "error")):
        trials = [trial_at(i, 1 / rate) for i, rate in enumerate((1 - off, 1.0, 1 + off))]
        (found,) = judge_speed(trials, 0.0, 1, 1)
        assert (found.level, found.text[:12]) == (level, "decode varie")


def test_prefill_is_judged_too():
    trials = [make_trial(10, [(0, i * NS)], []) for i in (1, 2, 3)]
    assert any(r.text.startswith("prefill varies by") for r in judge_speed(trials, 0.0, 1, 1))


def test_reasons_are_sorted_by_level_without_duplicates():
    reason, error = Reason("quality", "reason", "a"), Reason("", "error", "c")
    found = worst_first([reason, warning("b"), error, warning("b"), reason])
    assert found == [error, warning("b"), reason]


COOLDOWN = Cooldown(60.0, "power is 12.0 W, 5.0 W when idle")
QUIET = {"power_source": "mains", "thermal": "nominal", "load_1m": 2.0}
LOADS = [State(load_1m=9.0 + i) for i in range(3)]


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([{"before": State(**QUIET), "after": State(**QUIET)}] * 3, []),
        ([{"before": load, "after": load} for load in LOADS], ["load 9.0, 2 of it ours"]),
        (
            [{"before": State(power_source="battery"), "after": State(thermal="heavy")}],
            ["ran on battery", "heavy"],
        ),
        ([{"cooldown": COOLDOWN}], ["12.0 W, 5.0 W when idle after a wait of 60 s"]),
    ],
)
def test_each_kind_of_machine_state_is_one_warning(runs, words):
    processes = [process([], **fields) for fields in runs]
    found = warnings_of(judge_conditions(processes, threads=2))
    assert len(found) == len(words)
    assert all(any(part in text for text in found) for part in words)


UNEVEN = [1.0] * 9 + [500.0] * 30 + [1.0] * 100


def windows(length_s, thermal=None, watts=(7.0,) * 1000, step_s=1):
    decode = make_trial(0, [], [(2 * NS, (2 + length_s) * NS)])
    samples = [
        Sample(t * NS, (t + step_s) * NS, {"CPU": watts[t]}, thermal)
        for t in range(0, length_s + 10, step_s)
    ]
    return [with_energy(decode, samples, "fake").decode_energy]


@pytest.mark.parametrize(
    ("length_s", "fields", "flags", "level", "words"),
    [
        (5, {}, [], "warning", "10 or more"),
        (12, {}, [], "reason", "--min-window 30"),
        (40, {}, ["it stalled"], "warning", "it stalled"),
        (40, {"thermal": "heavy"}, [], "warning", "thermal pressure reached heavy"),
        (40, {"watts": UNEVEN, "step_s": 9}, [], "warning", "may belong to the time before"),
    ],
)
def test_weak_joules_have_a_reason(length_s, fields, flags, level, words):
    (found,) = judge_energy(windows(length_s, **fields), flags, "")
    assert found.level == level
    assert words in found.text


def test_good_and_missing_joules_give_no_warning():
    assert list(judge_energy(windows(40, thermal="nominal"), [], "")) == []
    lost = [replace(window, missing="no sample") for window in windows(40)]
    assert list(judge_energy(lost, ["it died"], "")) == []

import pytest
from msgspec.structs import replace

from edge.bench.cooldown import Cooldown
from edge.bench.energy import with_energy
from edge.bench.trial import make_trial
from edge.bench.verdict import judge_conditions, judge_energy, judge_speed, warning, worst_first
from edge.device.state import State
from edge.power.meter import Sample
from edge.profile.profile import Reason
from tests.bench.fakes import NS, process, trial_at


def speed(seconds, window_s=0.0, done=1, rounds=1):
    trials = [trial_at(i, s) for i, s in enumerate(seconds)]
    return texts_of(judge_speed(trials, window_s, done=done, rounds=rounds))


def texts_of(reasons):
    listed = list(reasons)
    assert {reason.level for reason in listed} <= {"warning"}
    return [reason.text for reason in listed]


@pytest.mark.parametrize(
    ("seconds", "fields", "words", "advice"),
    [
        ([1.0, 1.0], {}, "only 2 trials", "-r 3"),
        ([1.0], {}, "only 1 trial:", "-r 3"),
        ([1.0, 1.0, 2.0], {}, "decode varies by", "close other programs"),
        ([0.001] * 3, {}, "decode window is 0.002 s, too short to quote", "--min-window"),
        ([1.0, 1.01, 0.99, 1.0, 1.01, 5.0], {}, "1 of 6 trials lie far", "run again"),
        ([1 + i / 50 for i in range(6)], {}, "decode falls by 10%", "--cooldown"),
        ([2 - i / 50 for i in range(6)], {}, "decode rises by 5%", "--cooldown"),
        ([1.0] * 3, {"window_s": 3.0}, "decode window is 2 s, shorter than the 3 s", "larger -n"),
        ([1.0] * 3, {"rounds": 3}, "only 1 of 3 rounds were measured", "the run was stopped"),
    ],
)
def test_a_weak_rate_is_a_warning_with_advice(seconds, fields, words, advice):
    found = speed(seconds, **fields)
    assert any(words in text and advice in text for text in found), found


@pytest.mark.parametrize("seconds", [[1.0, 1.0, 1.01], [1 + i / 1000 for i in range(6)]])
def test_steady_rates_give_no_warning(seconds):
    assert speed(seconds, window_s=2.0) == []


def test_prefill_is_judged_as_well():
    trials = [make_trial(10, [(0, i * NS)], []) for i in (1, 2, 3)]
    assert any(r.text.startswith("prefill varies by") for r in judge_speed(trials, 0.0, 1, 1))


def test_worst_reasons_come_first_and_once():
    reason, error = Reason("quality", "reason", "a"), Reason("", "error", "c")
    found = worst_first([reason, warning("b"), error, warning("b"), reason])
    assert found == [error, warning("b"), reason]


def conditions(*runs):
    return texts_of(judge_conditions(runs, threads=2))


def test_a_quiet_machine_gives_no_warning():
    quiet = State(power_source="mains", thermal="nominal", load_1m=2.0)
    assert conditions(*[process([], before=quiet, after=quiet)] * 3) == []


def test_the_machines_state_is_a_warning_once_of_each_kind():
    loads = [State(load_1m=9.0 + i) for i in range(3)]
    (text,) = conditions(*(process([], before=s, after=s) for s in loads))
    assert "load 9.0, 2 of it ours" in text
    run = process([], before=State(power_source="battery"), after=State(thermal="heavy"))
    assert len(conditions(run)) == 2
    cooldown = Cooldown(60.0, "power is 12.0 W, 5.0 W when idle")
    (text,) = conditions(process([], cooldown=cooldown))
    assert "12.0 W, 5.0 W when idle after a wait of 60 s" in text


UNEVEN = [1.0] * 9 + [500.0] * 30 + [1.0] * 100


def windows(length_s, thermal=None, watts=(7.0,) * 1000, step_s=1):
    decode = make_trial(0, [], [(2 * NS, (2 + length_s) * NS)])
    samples = [
        Sample(t * NS, (t + step_s) * NS, {"CPU": watts[t]}, thermal)
        for t in range(0, length_s + 10, step_s)
    ]
    return [with_energy(decode, samples, "fake").decode_energy]


@pytest.mark.parametrize(
    ("length_s", "level", "words"),
    [(5, "warning", "10 or more"), (12, "reason", "--min-window 30")],
)
def test_short_windows_are_flagged_for_energy(length_s, level, words):
    (found,) = judge_energy(windows(length_s), [])
    assert found.level == level
    assert words in found.text


@pytest.mark.parametrize(
    ("fields", "flags", "words"),
    [
        ({}, ["it stalled"], "it stalled"),
        ({"thermal": "heavy"}, [], "thermal pressure reached heavy"),
        ({"watts": UNEVEN, "step_s": 9}, [], "edges of a window may hold"),
    ],
)
def test_doubtful_joules_are_a_warning(fields, flags, words):
    (text,) = texts_of(judge_energy(windows(40, **fields), flags))
    assert words in text


def test_good_joules_and_none_give_no_warning():
    assert list(judge_energy(windows(40, thermal="nominal"), [])) == []
    assert list(judge_energy([], ["it died"])) == []
    lost = [replace(window, missing="no sample") for window in windows(40)]
    assert list(judge_energy(lost, ["it died"])) == []

from dataclasses import replace

import pytest

from edge.bench.cooldown import Cooled
from edge.bench.energy import trial_energy
from edge.bench.rounds import ProcessRun
from edge.bench.runner import Outcome
from edge.bench.trial import Trial
from edge.bench.verdict import Judgement, judge_conditions, judge_energy, judge_speed
from edge.device.state import State
from edge.power.choose import NoMeter
from edge.power.meter import Sample
from tests.bench.fakes import NS, trial


def speed(seconds, window_s=0.0, done=1, rounds=1):
    return judge_speed(
        [trial(i, s) for i, s in enumerate(seconds)], window_s, done=done, rounds=rounds
    )


def test_steady_trials_are_valid():
    assert speed([1.0, 1.0, 1.01]) == Judgement()


@pytest.mark.parametrize(
    ("seconds", "words", "advice"),
    [
        ([1.0, 1.0], "only 2 trials", "-r 3"),
        ([1.0], "only 1 trial:", "-r 3"),
        ([1.0, 1.0, 2.0], "decode varies by", "close other programs"),
        ([0.001] * 3, "decode window is 0.002 s, too short to quote", "--min-window"),
        ([1.0, 1.01, 0.99, 1.0, 1.01, 5.0], "1 of 6 trials lie far", "run again"),
        ([1 + i / 50 for i in range(6)], "decode falls by 10%", "--cooldown"),
        ([2 - i / 50 for i in range(6)], "decode rises by 5%", "--cooldown"),
    ],
)
def test_what_makes_a_figure_weak_is_said_with_what_to_do(seconds, words, advice):
    judgement = speed(seconds)
    assert judgement.verdict == "WARN"
    assert any(words in r and advice in r for r in judgement.reasons), judgement.reasons


def test_a_drift_too_small_to_matter_is_none():
    assert speed([1 + i / 1000 for i in range(6)]) == Judgement()


def test_prefill_is_judged_as_well():
    trials = [replace(trial(i), prefill_ns=((0, i * NS),)) for i in (1, 2, 3)]
    reasons = judge_speed(trials, 0.0, 1, 1).reasons
    assert any(reason.startswith("prefill varies by") for reason in reasons)


def test_a_window_shorter_than_asked_for_is_said():
    reasons = speed([1.0, 1.0, 1.0], window_s=3.0).reasons
    assert any("decode window is 2 s, shorter than the 3 s" in r for r in reasons)
    assert speed([1.0, 1.0, 1.0], window_s=2.0) == Judgement()


def test_a_run_that_was_stopped_is_no_full_result():
    judgement = speed([1.0] * 3, done=1, rounds=3)
    assert judgement.verdict == "WARN"
    assert judgement.reasons == ("only 1 of 3 rounds were measured: the run was stopped",)


def test_a_verdict_only_gets_worse():
    worst = Judgement().with_("INVALID", ["a"]).with_("WARN", ["b", "a"])
    assert worst == Judgement("INVALID", ("a", "b"))
    assert Judgement().with_("INVALID", []) == Judgement()


# --- the machine


def run_between(before, after, cooled=None):
    return ProcessRun(0, Outcome(None), NoMeter(""), [], before, after, cooled or Cooled())


def test_a_quiet_machine_is_no_doubt():
    quiet = State(power_source="mains", thermal="nominal", load_1m=2.0)
    assert judge_conditions([run_between(quiet, quiet)] * 3, threads=2) == Judgement()


def test_doubts_of_several_processes_are_said_once():
    loads = [State(load_1m=9.0 + i) for i in range(3)]
    judgement = judge_conditions([run_between(s, s) for s in loads], threads=2)
    assert judgement.verdict == "WARN"
    assert len(judgement.reasons) == 1
    assert "load 9.0, 2 of it ours" in judgement.reasons[0]


def test_heat_and_battery_are_doubts():
    judgement = judge_conditions(
        [run_between(State(power_source="battery"), State(thermal="heavy"))], threads=2
    )
    assert len(judgement.reasons) == 2


def test_a_machine_that_did_not_settle_is_a_doubt():
    cooled = Cooled(60.0, "power is 12.0 W, 5.0 W at rest")
    judgement = judge_conditions([run_between(State(), State(), cooled)], threads=2)
    assert judgement.verdict == "WARN"
    assert "12.0 W, 5.0 W at rest after a wait of 60 s" in judgement.reasons[0]


# --- energy


def energies(length_s, thermal=None, watts=(7.0,) * 1000, step_s=1):
    decode = Trial(0, False, (), ((2 * NS, (2 + length_s) * NS),), 0)
    samples = [
        Sample(t * NS, (t + step_s) * NS, {"CPU": watts[t]}, thermal)
        for t in range(0, length_s + 10, step_s)
    ]
    return [trial_energy(decode, samples, "fake")]


@pytest.mark.parametrize(
    ("length_s", "verdict", "words"),
    [(5, "WARN", ["10 or more"]), (12, "VALID", ["--min-window 30"]), (30, "VALID", [])],
)
def test_short_windows_are_flagged_for_energy(length_s, verdict, words):
    judgement = judge_energy(energies(length_s), [])
    assert judgement.verdict == verdict
    assert len(judgement.reasons) == len(words)
    assert all(w in r for w, r in zip(words, judgement.reasons, strict=True))


def test_the_meters_own_doubts_count():
    assert judge_energy(energies(40), ["it stalled"]) == Judgement("WARN", ("it stalled",))


def test_heat_in_the_window_is_said():
    judgement = judge_energy(energies(40, thermal="heavy"), [])
    assert judgement.verdict == "WARN"
    assert "thermal pressure reached heavy" in judgement.reasons[0]
    assert judge_energy(energies(40, thermal="nominal"), []) == Judgement()


def test_edges_that_may_hold_much_are_said():
    watts = [1.0] * 9 + [500.0] * 30 + [1.0] * 100
    judgement = judge_energy(energies(40, watts=watts, step_s=9), [])
    assert any("edges of a window may hold" in r and "--min-window" in r for r in judgement.reasons)


def test_without_energy_there_is_nothing_to_judge():
    assert judge_energy([trial_energy(trial(0), [], "fake")], ["it died"]) == Judgement()

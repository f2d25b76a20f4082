import json
from dataclasses import asdict

import pytest

from edge.bench.trial import KEPT_TOKENS, Trial, Window, run_trial
from edge.bench.workload import TokenPlan, Workload, plan_tokens
from tests.bench.fakes import FakeClock, FakeEngine


def trial_of(plan, depth=0):
    clock = FakeClock()
    engine = FakeEngine(clock)
    if depth:
        engine.prefill(plan.depth)
    return engine, run_trial(engine, plan, 0, False, clock)


def test_rates_follow_from_the_stamps():
    _, trial = trial_of(TokenPlan([], [1] * 50, [2, 3, 4]))
    (ends,) = trial.prefill_ns
    assert ends[1] - ends[0] == 500
    assert trial.ttft_s == pytest.approx(500e-9)
    assert trial.prefill_tok_s == pytest.approx(1e8)
    # Steps take 100, 101, 102 ns; three stamps bound the last two.
    assert trial.decode_s == pytest.approx(203e-9)
    assert trial.decode_tok_s == pytest.approx(2 / 203e-9)


def test_generation_starts_at_the_depth_not_behind_the_prompt():
    plan = TokenPlan([7] * 4, [1] * 50, [2, 3])
    engine, _ = trial_of(plan, depth=4)
    assert engine.calls[1:] == [("prefill", 4, plan.prompt), ("decode", 4, plan.generate)]
    assert engine.length == 4


def test_a_joint_workload_generates_behind_the_prompt():
    plan = TokenPlan([7] * 4, [1] * 50, [2, 3])
    clock = FakeClock()
    engine = FakeEngine(clock)
    engine.prefill(plan.depth)
    run_trial(engine, plan, 0, False, clock, Window(1e-6, 3), joint=True)
    places = [(call[0], call[1]) for call in engine.calls[1:]]
    assert places == [("prefill", 4)] * 2 + [("decode", 54)] * 3
    assert engine.length == 4


def test_repetitions_are_alike():
    clock = FakeClock()
    engine = FakeEngine(clock)
    plan = TokenPlan([], [1] * 5, [2] * 5)
    first, second = (run_trial(engine, plan, i, False, clock) for i in range(2))
    assert first.decode_tok_s == second.decode_tok_s
    assert second.prefill_window_ns[0] >= first.decode_window_ns[1]


@pytest.mark.parametrize("count", [0, 1])
def test_below_two_tokens_there_is_no_rate(count):
    _, trial = trial_of(TokenPlan([], [1], [2] * count))
    assert trial.decode_s is None
    assert trial.decode_tok_s is None
    assert trial.decode_window_ns is None
    assert trial.window_tokens == 0


def test_without_a_prompt_there_is_no_prefill():
    engine, trial = trial_of(TokenPlan([], [], [2, 3]))
    assert trial.ttft_s is None
    assert trial.prefill_tok_s is None
    assert trial.prefill_window_ns is None
    assert [call[0] for call in engine.calls] == ["decode"]


def test_a_clock_that_stands_still_gives_no_rate():
    trial = Trial(0, False, ((5, 5),), ((9, 9),), 3)
    assert trial.decode_tok_s is None
    assert trial.prefill_tok_s is None


# --- several passes


def windowed(least_s, most=1000, plan=None):
    clock = FakeClock()
    engine = FakeEngine(clock)
    plan = plan or TokenPlan([], [1] * 50, [2, 3, 4])
    return engine, run_trial(engine, plan, 0, False, clock, Window(least_s, most))


def test_passes_are_repeated_until_the_window_is_full():
    engine, trial = windowed(1200e-9)
    # Prefill: 500 ns each, so three. Decode: 203 ns first to last stamp and 100 ns to the next
    # pass's first: 203, 506, 809, 1112, 1415.
    assert [len(trial.prefill_ns), len(trial.passes_ns)] == [3, 5]
    begin_ns, end_ns = trial.decode_window_ns
    assert end_ns - begin_ns == 1415
    assert {call[1] for call in engine.calls} == {0}  # every pass from the same depth


def test_more_passes_change_no_rate():
    (_, one), (_, many) = windowed(0.0), windowed(1200e-9)
    assert many.decode_tok_s == pytest.approx(one.decode_tok_s)
    assert many.prefill_tok_s == pytest.approx(one.prefill_tok_s)
    assert many.ttft_s == pytest.approx(one.ttft_s)


def test_passes_are_bounded():
    _, trial = windowed(3600.0, most=4)
    assert [len(trial.prefill_ns), len(trial.passes_ns)] == [4, 4]


def test_tokens_of_a_window_are_all_but_the_first():
    """Five passes of three: the first stamp opens the window, fourteen steps lie in it."""
    _, trial = windowed(1200e-9)
    assert trial.window_tokens == 14
    assert trial.window_prompt_tokens == 150
    assert len(trial.token_times_ns) == 10


def test_time_between_passes_is_in_the_window_but_not_in_the_rate():
    trial = Trial(0, False, ((0, 10), (500, 510)), ((0, 100, 200), (9000, 9100, 9200)), 5)
    assert trial.decode_tok_s == pytest.approx(4 / 400e-9)
    assert trial.prefill_tok_s == pytest.approx(5 / 10e-9)
    assert trial.decode_window_ns == (0, 9200)


# --- in a profile


def test_a_record_gives_the_stamps_back_to_the_microsecond():
    stamps = ((1_000_400, 2_000_900, 3_000_400), (9_000_000, 9_500_000))
    record = Trial(0, False, ((1, 2),), stamps, 5).to_record()
    assert record["token_us"] == [[1000, 1000], [500]]  # 1000.5 and 999.5 add up to 2000
    assert record["pass_begin_ns"] == [1_000_400, 9_000_000]
    assert record["pass_end_ns"] == [3_000_400, 9_500_000]
    assert record["prefill_ns"] == [1, 2]


def test_long_trials_keep_the_ends_of_every_pass():
    stamps = tuple(tuple(range(i * 10**7, i * 10**7 + 10**6, 1000)) for i in range(9))
    record = Trial(0, False, (), stamps, 0).to_record()
    assert len(record["pass_end_ns"]) == 9
    assert len(record["token_us"]) == KEPT_TOKENS // 1000


def test_a_trial_survives_json():
    trial = windowed(1200e-9)[1]
    assert Trial.from_dict(json.loads(json.dumps(asdict(trial)))) == trial


def test_the_plan_is_the_same_for_the_same_seed():
    workload = Workload(prompt=30, generate=20, depth=10)
    first, again = (plan_tokens(workload, 100, seed=3) for _ in range(2))
    assert first == again
    assert first != plan_tokens(workload, 100, seed=4)
    assert [len(x) for x in (first.depth, first.prompt, first.generate)] == [10, 30, 20]
    assert all(0 <= i < 100 for x in (first.depth, first.prompt, first.generate) for i in x)


@pytest.mark.parametrize(
    ("workload", "text", "positions"),
    [
        (Workload(512, 128), "pp512, tg128", 512),
        (Workload(0, 128, 4096), "tg128 @ d4096", 4224),
        (Workload(512, 600), "pp512, tg600", 600),
    ],
)
def test_workloads_are_written_as_llama_bench_writes_them(workload, text, positions):
    assert (str(workload), workload.context_tokens) == (text, positions)

import pytest

from edge.bench.trial import Trial, run_trial
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
    assert trial.prefill_end_ns - trial.prefill_begin_ns == 500
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


def test_repetitions_are_alike():
    clock = FakeClock()
    engine = FakeEngine(clock)
    plan = TokenPlan([], [1] * 5, [2] * 5)
    first, second = (run_trial(engine, plan, i, False, clock) for i in range(2))
    assert first.decode_tok_s == second.decode_tok_s
    assert second.prefill_begin_ns >= first.token_ns[-1]


@pytest.mark.parametrize("count", [0, 1])
def test_below_two_tokens_there_is_no_rate(count):
    _, trial = trial_of(TokenPlan([], [1], [2] * count))
    assert trial.decode_s is None
    assert trial.decode_tok_s is None


def test_without_a_prompt_there_is_no_prefill():
    engine, trial = trial_of(TokenPlan([], [], [2, 3]))
    assert trial.ttft_s is None
    assert trial.prefill_tok_s is None
    assert [call[0] for call in engine.calls] == ["decode"]


def test_a_clock_that_stands_still_gives_no_rate():
    trial = Trial(0, False, 5, 5, (9, 9), 3)
    assert trial.decode_tok_s is None
    assert trial.prefill_tok_s is None


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
        (Workload(512, 128), "pp512 + tg128", 512),
        (Workload(0, 128, 4096), "tg128 @ d4096", 4224),
        (Workload(512, 600), "pp512 + tg600", 600),
    ],
)
def test_workloads_are_written_as_llama_bench_writes_them(workload, text, positions):
    assert (str(workload), workload.context_tokens) == (text, positions)

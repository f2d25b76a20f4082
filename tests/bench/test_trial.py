import pytest

from edge.bench import trial as module
from edge.bench.trial import KEPT_TOKENS, kept_times, make_trial, run_trial
from edge.bench.workload import TokenPlan, plan_tokens
from edge.profile.profile import Workload
from tests.bench.fakes import FakeEngine, FakeMachine

PLAN = TokenPlan([], [1] * 50, [2, 3, 4])
RATES = ("decode_tok_s", "prefill_tok_s", "ttft_s")


@pytest.fixture
def run(monkeypatch):
    """run(plan, least_s, most_passes, joint): the engine and its trial."""

    def run(plan, least_s=0.0, most_passes=1000, joint=False):
        monkeypatch.setattr(module, "MAX_PASSES", most_passes)
        engine = FakeEngine(FakeMachine(monkeypatch).clock)
        if plan.depth:
            engine.prefill(plan.depth)
        return engine, run_trial(engine, plan, least_s, joint)

    return run


def test_token_ids_follow_from_the_seed():
    first, again, other = (plan_tokens(Workload(9, 5, 3), 1000, seed) for seed in (4, 4, 5))
    assert first == again != other
    assert [len(ids) for ids in (first.depth, first.prompt, first.generate)] == [3, 9, 5]
    assert set(first.prompt) <= set(range(1000))


def test_generation_starts_at_the_depth_and_a_joint_one_after_the_prompt(run):
    plan = TokenPlan([7] * 4, [1] * 50, [2, 3])
    engine, _ = run(plan)
    assert engine.calls[1:] == [("prefill", 4, plan.prompt), ("decode", 4, plan.generate)]
    assert engine.length == 4
    engine, _ = run(plan, 1e-6, 3, joint=True)
    places = [(call[0], call[1]) for call in engine.calls[1:]]
    assert places == [("prefill", 4)] * 2 + [("decode", 54)] * 3
    assert engine.length == 4


@pytest.mark.parametrize(
    ("prompt", "generate", "missing"),
    [
        ([1], [], ["decode_tok_s"]),
        ([1], [2], ["decode_tok_s"]),
        ([], [2, 3], ["prefill_tok_s", "ttft_s"]),
    ],
)
def test_without_tokens_there_is_no_rate(run, prompt, generate, missing):
    _, trial = run(TokenPlan([], prompt, generate))
    assert [name for name in RATES if getattr(trial, name) is None] == missing
    trial = make_trial(3, [(5, 5)], [[9, 9]])
    assert (trial.decode_tok_s, trial.prefill_tok_s) == (None, None)  # the clock stood still


def test_rates_follow_from_the_stamps_of_one_or_many_passes(run):
    _, one = run(PLAN)
    assert one.ttft_s == pytest.approx(500e-9)
    assert one.prefill_tok_s == pytest.approx(1e8)
    # Steps take 100, 101, 102 ns; three stamps bound the last two.
    assert one.decode_tok_s == pytest.approx(2 / 203e-9)
    engine, many = run(PLAN, 1200e-9)
    # Prefill: 500 ns each, so three. Decode: 203 ns first to last stamp and 100 ns to the next
    # pass's first: 203, 506, 809, 1112, 1415.
    assert [len(many.prefills), len(many.passes)] == [3, 5]
    assert many.passes[-1][1] - many.passes[0][0] == 1415
    assert {call[1] for call in engine.calls} == {0}  # every pass from the same depth
    for name in RATES:
        assert getattr(many, name) == pytest.approx(getattr(one, name))
    _, bounded = run(PLAN, 3600.0, 4)
    assert [len(bounded.prefills), len(bounded.passes)] == [4, 4]


def test_times_are_kept_to_the_microsecond_and_of_whole_passes():
    trial = make_trial(5, [(1, 2)], [(1_000_400, 2_000_900, 3_000_400), (9_000_000, 9_500_000)])
    assert trial.token_us == [[1000, 1000], [500]]  # 1000.5 and 999.5 add up to 2000
    assert trial.passes == [(1_000_400, 3_000_400), (9_000_000, 9_500_000)]
    assert len(kept_times([[1000] * 999] * 9)) == KEPT_TOKENS // 1000
    assert kept_times([[1] * 9000] * 2) == [[1] * 9000]

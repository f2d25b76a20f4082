import pytest

from edge.bench import trial as module
from edge.bench.trial import make_trial, run_trial, with_energy
from edge.bench.workload import TokenPlan, plan_tokens
from edge.power.meter import Sample
from edge.profile.profile import Workload
from edge.profile.trial import PowerSeries, ThermalChange
from tests.bench.fakes import NS, FakeEngine, FakeMachine, trial_at

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
        workload = Workload(len(plan.prompt), len(plan.generate), len(plan.depth), joint)
        return engine, run_trial(engine, plan, workload, least_s)

    return run


def test_token_ids_follow_from_the_seed():
    first, again, other = (plan_tokens(Workload(9, 5, 3), 1000, seed) for seed in (4, 4, 5))
    assert first == again != other
    assert [len(ids) for ids in (first.depth, first.prompt, first.generate)] == [3, 9, 5]


def test_every_sequence_of_a_batch_has_ids_of_its_own_and_rates_are_those_of_all(run, monkeypatch):
    workload = Workload(50, 3, 2, batch=4)
    plan = plan_tokens(workload, 1000, 4)
    assert [plan.prompt[0], plan.generate[1]] == [
        plan_tokens(Workload(50, 3, 2), 1000, 4).prompt,
        plan_tokens(Workload(50, 3, 2), 1000, 5).generate,
    ]
    for rows, length in ((plan.depth, 2), (plan.prompt, 50), (plan.generate, 3)):
        assert [len(row) for row in rows] == [length] * 4
        assert len({tuple(row) for row in rows}) == 4
    engine, one = run(PLAN)
    # A fake that takes as long for all rows as for one: a call has the ids of one of them.
    monkeypatch.setattr(engine, "prefill", lambda rows: FakeEngine.prefill(engine, rows[0]))
    step = lambda rows, stamp: FakeEngine.decode(engine, rows[0], stamp)  # noqa: E731
    monkeypatch.setattr(engine, "decode", step)
    rows = TokenPlan([], *([ids] * 4 for ids in (PLAN.prompt, PLAN.generate)))
    four = run_trial(engine, rows, Workload(50, 3, batch=4))
    assert (four.decode_tok_s, four.prefill_tok_s) == (4 * one.decode_tok_s, 4 * one.prefill_tok_s)
    assert (four.ttft_s, four.token_us, four.prompt_tokens) == (one.ttft_s, one.token_us, 200)


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
    assert len(module.kept_times([[1000] * 999] * 9)) == module.KEPT_TOKENS // 1000
    assert module.kept_times([[1] * 9000] * 2) == [[1] * 9000]


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


def test_joules_per_token_are_shared_by_a_batch():
    trial = make_trial(10, [(0, 2 * NS)], [(2 * NS, 3 * NS, 4 * NS)], batch=4)
    trial = with_energy(trial, steady(0, 10, CPU=6), "fake", batch=4)
    assert (trial.decode_energy.tokens, trial.prefill_energy.tokens) == (8, 40)
    assert trial.decode_energy.joules_per_token == pytest.approx(12 / 8)
    assert trial.prefill_energy.joules_per_token == pytest.approx(12 / 40)


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
    count = 2 * module.KEPT_SAMPLES + 100
    many = [Sample(i * NS, (i + 1) * NS, {"CPU": 0.5, "GPU": i * 1.0}) for i in range(count)]
    kept = module.power_series(many)
    assert len(kept.begin_ns) <= module.KEPT_SAMPLES
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
    assert module.power_series(many) == PowerSeries(
        begin_ns=[i * NS for i in range(5)],
        end_ns=[i * NS for i in range(1, 6)],
        milliwatts={"CPU": [500, 500, 0, 500, 500], "GPU": [0, 0, 500, 0, 0]},
        thermal=[ThermalChange(*change) for change in changes],
    )
    assert module.power_series([Sample(5, 5, {"CPU": 1.0})]) is None


@pytest.mark.parametrize(
    ("idle_w", "moves"), [(None, True), (5.9, True), (5.99, False), (9.0, False)]
)
def test_a_meter_that_reads_no_more_than_when_idle_gives_no_energy(idle_w, moves):
    decode = with_energy(trial_at(0), steady(0, 20, CPU=6), "fake", idle_w).decode_energy
    if moves:
        assert decode.missing is None and decode.power_w == pytest.approx(6)
    else:
        assert decode.power_w is None and "fake does not move: it read 6.0 W" in decode.missing

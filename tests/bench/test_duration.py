import pytest

from edge.bench import duration
from edge.bench.duration import Pace, estimate
from edge.bench.runner import Run
from edge.profile.profile import Workload
from tests.bench.fakes import FakeClock, job_of


def run_of(*workloads, rounds=3, min_window_s=3.0, **fields):
    jobs = [job_of("mlx", "m", workload=each, min_window_s=min_window_s) for each in workloads]
    return Run(jobs, rounds, None, **{"idle_s": 0.0, **fields})


BOTH, PREFILL = Workload(8, 4), Workload(8, 0)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        # 3 x (3 s + 2 x 2 x 3 s)
        (run_of(BOTH), "about 40 s: 1 row x 6 trials, in all 12 windows of 3 s, and 3 processes"),
        (run_of(BOTH, PREFILL), "about 70 s: 2 rows x 6 trials, in all 18 windows of 3 s, and 6"),
        (
            run_of(*[BOTH] * 50, min_window_s=10.0, idle_s=10.0, has_power=True),
            "about 1 h 48 min: 50 rows x 6 trials, in all 600 windows of 10 s, as power is measured"
            ", and 150 processes of 3 s, idle power twice for 10 s;",
        ),
        (run_of(BOTH, rounds=1, min_window_s=0.0), "4 windows of one pass, and 1 process of 3 s"),
    ],
)
def test_the_time_of_a_run_is_said_with_its_reason(run, words):
    assert words in estimate(run)


def test_the_rest_of_a_run_follows_its_pace(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(duration, "time", clock)
    clock.monotonic = lambda: clock.now_ns / 1e9
    run = run_of(BOTH, BOTH, rounds=2)  # 60 s
    pace = Pace(run, clock.monotonic())
    (job, _), shares = run.jobs, []
    for repetition in range(3):
        shares.append(job.share_done(repetition))
    assert shares == pytest.approx([3 / 15, 9 / 15, 1.0])
    clock.now_ns += 30 * 10**9  # twice as long as planned
    assert pace.after(0, 0.5) == pytest.approx((0.25, 45 * (30 + 10) / (15 + 10)))
    pace.after(0, 1.0)
    assert pace.after(1, 1.0) == (1.0, 0.0)

"""Whole runs with a stand-in for the worker, and one with real processes that is killed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from edge.bench.job import Job
from edge.bench.rounds import Run, Settings
from edge.bench.row import Context, build_row
from edge.bench.runner import Outcome
from edge.bench.workload import Workload
from edge.profile.reading import read_profile
from tests.bench.fakes import FACTS, NS, FakeMachine, FakeMeter
from tests.bench.fakes import trial as fake_trial
from tests.bench.test_row import SUBJECT
from tests.support.profiles import ROOT, faults
from tests.support.tiny import PLAIN, write_checkpoint

JOBS = [Job("mlx", name, Workload(10, 3), 50, 0, 2, 1, 2) for name in "abc"]


class Workers:
    """Stands for the processes: two trials each, 10 s of work; `dies` names (path, round)."""

    def __init__(self, clock, dies=()):
        self.clock, self.dies, self.ran = clock, dies, []

    def __call__(self, job, timeout_s, on_trial):
        self.ran.append((job.path, job.round))
        begin_ns = self.clock.now_ns
        self.clock.now_ns += 10 * NS
        if (job.path, job.round) in self.dies:
            return Outcome(job, failure="the worker died with signal 11")
        stamps = tuple(begin_ns + i * NS for i in (3, 4, 5))
        trials = [
            type(fake_trial(0))(i, False, ((begin_ns, begin_ns + NS),), (stamps,), 10, job.round)
            for i in range(2)
        ]
        for one in trials:
            on_trial(one)
        return Outcome(job, 1.0, FACTS, trials, 5)


def go(settings, watts=None, dies=(), thermal=None):
    fake = FakeMachine(watts=watts, thermal=thermal)
    workers = Workers(fake.clock, dies)
    run = Run(JOBS, settings, fake.machine(), workers)
    entered, seen = [], []
    run.go(entered.append, lambda row, one: seen.append((row, one.round)))
    return run.results, workers.ran, entered, seen, fake


def test_every_row_runs_in_every_round_in_the_recorded_order():
    results, ran, entered, seen, _ = go(Settings(rounds=3, seed=5))
    wanted = [("abc"[row], number) for number, order in enumerate(results.order) for row in order]
    assert ran == wanted
    assert entered == [row for order in results.order for row in order]
    assert len(seen) == 18
    assert [[r.round for r in runs] for runs in results.runs] == [[0, 1, 2]] * 3
    assert results.finished


def test_a_row_that_fails_is_not_run_again_and_the_rest_completes():
    results, ran, *_ = go(Settings(rounds=3), dies=[("b", 1)])
    assert [len(runs) for runs in results.runs] == [3, 2, 3]
    assert ("b", 2) not in ran
    rows = [build_row(SUBJECT, JOBS[i], results.runs[i], Context(3)) for i in range(3)]
    assert [row.verdict == "INVALID" for row in rows] == [False, True, False]


def test_without_a_meter_nothing_waits():
    results, *_, fake = go(Settings(rounds=2))
    assert fake.slept == []
    assert results.idle_w is None
    assert {run.cooled.waited_s for runs in results.runs for run in runs} == {0.0}


def test_power_is_measured_around_every_process_and_idle_before_and_after():
    results, *_ = go(Settings(rounds=2, idle_s=10), watts=6.0)
    assert results.idle_w == pytest.approx(6.0)
    assert results.idle_before.seconds == results.idle_after.seconds == 10.0
    row = build_row(SUBJECT, JOBS[0], results.runs[0], Context(2, idle_w=results.idle_w))
    assert row.power_w.median == pytest.approx(6.0)
    assert row.joules_per_token_net.median == pytest.approx(0.0, abs=1e-9)
    assert row.power.source == "fake"


def test_how_long_each_process_waited_is_kept():
    results, *_ = go(Settings(rounds=1, cooldown_s=60), thermal=["heavy", "heavy", "nominal"])
    first = results.order[0][0]
    assert results.runs[first][0].cooled.waited_s == 2.0


def test_ctrl_c_stops_the_meter():
    fake = FakeMachine(watts=5.0)
    stopped = []

    class Noted:
        source, boundary, unavailable, flags = "noted", "", None, ()

        def start(self):
            pass

        def stop(self):
            stopped.append(True)
            return []

    def interrupted(*_):
        raise KeyboardInterrupt

    fake.new_meter = Noted
    run = Run(JOBS, Settings(rounds=1, idle_s=0, cooldown_s=0), fake.machine(), interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.go(lambda _: None, lambda *_: None)
    assert stopped == [True]


def test_what_was_measured_before_a_kill_is_on_disk_and_valid(tmp_path):
    """SIGKILL to a real run after its first process; its worker ends with its last trial."""
    tiny = write_checkpoint(tmp_path / "tiny", PLAIN)
    words = ["bench", tiny, "--rows", "mlx-fp16", "mlx-int4", "-p", "8", "-n", "8", "-r", "300"]
    command = [sys.executable, "-m", "edge", *words, "--rounds", "100", "--min-window", "0"]
    process = subprocess.Popen(
        [*map(str, command), "--save", str(tmp_path / "s")],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while not list((tmp_path / "s").glob("*.json")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    (path,) = (tmp_path / "s").glob("*.json")
    profile = read_profile(path)
    assert faults(profile) == []
    assert profile["method"]["finished"] is False
    assert len(profile["method"]["order"]) == 100
    row = profile["rows"][0]
    assert row["verdict"] == "WARN"
    assert any("of 100 rounds were measured" in reason for reason in row["reasons"])
    assert row["decode_tok_s"]["n"] >= 3
    json.dumps(profile)


class Meters:
    """A machine whose powermetrics stops starting after a while; what comes then is given."""

    def __init__(self, fake, works, then):
        self.fake, self.works, self.then = fake, works, then

    def __call__(self):
        self.works -= 1
        why = None if self.works >= 0 else "sudo wants a password"
        if self.works < -1 and self.then is not None:
            return FakeMeter(self.fake.clock, self.then)
        return FakeMeter(self.fake.clock, 5.0, unavailable=why)


@pytest.mark.parametrize("then", [None, 3.0])
def test_power_that_is_lost_is_said_at_once_and_in_the_rows(then):
    """The first process has a meter, the next none, then the next source where there is one."""
    fake, said = FakeMachine(), []
    machine = replace(fake.machine(), new_meter=Meters(fake, 1, then))
    settings = Settings(rounds=1, idle_s=0, has_power=True)
    run = Run(JOBS, settings, machine, Workers(fake.clock), said.append)
    results = run.go(lambda row: None, lambda row, one: None)
    instead = "; fake goes on" if then else ""
    assert said == [f"power is no longer measured: sudo wants a password{instead}"]
    first, second, _ = (runs[0] for runs in (results.runs[i] for i in results.order[0]))
    assert first.power_lost is None and second.power_lost == "sudo wants a password"
    rows = {run.outcome.job.path: build_row(SUBJECT, run.outcome.job, [run], Context(1))
            for run in (first, second)}  # fmt: skip
    before, after = rows.values()
    assert before.power_w.median == pytest.approx(5.0)
    assert "power was lost during the run: sudo wants a password" in after.reasons
    assert after.verdict == "WARN"
    assert (after.power_w is None) == (then is None)


def test_a_machine_without_power_is_not_told_that_it_lost_it():
    fake, said = FakeMachine(), []
    machine = replace(fake.machine(), new_meter=Meters(fake, 0, None))
    Run(JOBS, Settings(rounds=1, idle_s=0), machine, Workers(fake.clock), said.append).go(
        lambda row: None, lambda row, one: None
    )
    assert said == []

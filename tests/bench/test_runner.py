import json
import os
import signal
import sys
from contextlib import nullcontext
from itertools import chain, pairwise, repeat
from unittest.mock import Mock, call

import numpy as np
import psutil
import pytest

from edge.bench import runner, worker
from edge.bench.row import build_row
from edge.bench.runner import (
    Outcome,
    Run,
    groups_of,
    run_in_turns,
    run_job,
    stopped_by_sigterm,
)
from edge.bench.trial import make_trial
from edge.errors import EdgeError
from edge.profile.profile import Workload
from tests.bench.fakes import (
    NS,
    TARGET,
    FakeClock,
    FakeEngine,
    FakeMachine,
    FakeMeter,
    context,
    done,
    job_of,
)


@pytest.fixture
def outcome_of(monkeypatch):
    """outcome_of(code, timeout_s, *arguments): the outcome of a worker that runs this Python."""

    def outcome_of(code, timeout_s=60, *arguments):
        monkeypatch.setattr(runner, "WORKER", (sys.executable, "-S", "-c", code, *arguments))
        return run_job(job_of("mlx", "m"), timeout_s)

    return outcome_of


@pytest.mark.parametrize(
    ("engine", "artefact", "workload"),
    [
        # Without the depth's prefill the trial's first trim would be refused.
        ("mlx", "mlx-int4", Workload(8, 4, 100)),
        ("mlx-lm", "mlx-int4", Workload(8, 4, 5, joint=True)),
        ("llama.cpp", "gguf-q5_k_m.gguf", Workload(8, 4)),
        ("mlx", "mlx-int4", Workload(8, 4, 5, batch=3)),
    ],
)
def test_every_engine_runs_in_a_worker(engine, artefact, workload, demo_out):
    seen = []
    outcome = run_job(job_of(engine, demo_out / artefact, workload=workload), 120, seen.append)
    assert outcome.failure is None
    assert [t.warmup for t in outcome.trials] == [True, False, False]
    assert seen == outcome.trials
    for trial in outcome.trials:
        ((begin_ns, end_ns),), ((first_ns, last_ns),) = trial.prefills, trial.passes
        assert begin_ns < end_ns <= first_ns < last_ns
        assert len(trial.token_us[0]) == 3
        assert trial.prompt_tokens == 8 * workload.batch
    done = outcome.done
    assert done.load_s > 0
    assert done.peak_memory_bytes > 20e6
    assert done.facts.weight_bytes_per_token > 1e6
    assert (done.gate.prompt_tokens, done.gate.depth) == (workload.prompt, workload.depth)
    assert done.gate.share < 1 and done.logits["logits"]
    # Of a batch a pass and one from unequal lengths: 5 calls for each sequence.
    assert (done.gate.positions >= 5 * 3) == (workload.batch > 1)
    if engine == "mlx":
        assert 3e6 < done.peak_device_bytes < done.peak_memory_bytes
    if engine == "llama.cpp":
        assert done.peak_device_bytes is None  # it does not count


def test_workers_take_turns_in_mirrored_order_and_one_that_dies_drops_out(demo_out):
    names = ("mlx-int4", "no", "gguf-q6_k.gguf")
    jobs = [job_of("mlx" if name == "mlx-int4" else "llama.cpp", demo_out / name) for name in names]
    seen = []
    outcomes = run_in_turns(jobs, 120, [seen.append, seen.append, seen.append])
    mlx, missing, gguf = outcomes
    assert "no" in missing.failure and not missing.trials
    assert [outcome.failure for outcome in (mlx, gguf)] == [None, None]
    assert all(outcome.done.load_s > 0 for outcome in (mlx, gguf))
    # Warm-ups, then turns in the reverse order of the one before.
    expected = [(mlx, 0), (gguf, 0), (gguf, 1), (mlx, 1), (mlx, 2), (gguf, 2)]
    assert seen == [outcome.trials[number] for outcome, number in expected]
    spans = [(trial.prefills[0][0], trial.passes[-1][1]) for trial in seen]
    assert all(end < begin for (_, end), (begin, _) in pairwise(spans))


def test_a_worker_in_turns_stops_with_the_run(monkeypatch):
    """The run ends, as by Ctrl-C, while the workers wait for their turns."""
    code = (
        "import json, sys; sys.stdin.readline(); trial = {'warmup': True}\n"
        "print(json.dumps({'type': 'Measured', 'trial': trial}), flush=True)\n"
        "sys.exit(sys.stdin.readline() and 'a turn too many')"
    )
    monkeypatch.setattr(runner, "WORKER", (sys.executable, "-S", "-c", code))
    started = Mock(side_effect=[None, KeyboardInterrupt])
    with pytest.raises(KeyboardInterrupt):
        run_in_turns([job_of("mlx", "m")] * 2, 60, [started, started])
    assert not [child for child in psutil.Process().children() if "a turn" in child.cmdline()[-1]]


OUT_OF_MEMORY = "close other programs, or choose a smaller artefact"
METAL = "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPU"
MALLOC = json.dumps({"type": "Failed", "reason": "[malloc] Unable to allocate 9000000000 bytes."})


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", ["died with signal 11"]),
        ("import os; os.kill(os.getpid(), 9)", ["killed (signal 9)", OUT_OF_MEMORY]),
        ("import sys; sys.exit('no room left')", ["no room left"]),
        # No machine has an exabyte.
        ("bytearray(1 << 60)", ["exit code 1 (MemoryError)", OUT_OF_MEMORY]),
        (
            f"import os, sys; print({METAL!r}, file=sys.stderr, flush=True); os.abort()",
            [METAL, OUT_OF_MEMORY],
        ),
        (f"print({MALLOC!r})", ["Unable to allocate 9000000000 bytes,", OUT_OF_MEMORY]),
        ("print('hello')", ["an invalid message: hello"]),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\n')", ["an invalid message"]),
    ],
)
def test_a_broken_worker_is_a_failure_that_keeps_its_trials(outcome_of, code, words):
    trial = {"warmup": False, "prefill_ns": [1, 2], "prompt_tokens": 8}
    measured = json.dumps({"type": "Measured", "trial": trial})
    outcome = outcome_of(f"print({measured!r}, flush=True); {code}")
    assert all(part in outcome.failure for part in words)
    assert len(outcome.trials) == 1


def test_a_worker_that_hangs_is_stopped(outcome_of):
    assert "stopped after 0.2 s" in outcome_of("import time; time.sleep(60)", 0.2).failure
    assert "exit code 3" in outcome_of("raise SystemExit(3)", 1e12).failure  # beyond any timer


def test_a_worker_that_dies_after_its_work_is_a_remark(outcome_of):
    message = {"type": "Done", "load_s": 1.0, "peak_memory_bytes": 5, "peak_device_bytes": None}
    line = json.dumps({**message, "facts": {"device": "GPU"}})
    code = f"import os, sys; sys.stdin.read(); print({line!r}, flush=True)"
    outcome = outcome_of(f"{code}; os.abort()")
    assert outcome.failure is None
    assert outcome.bad_end == "after its work the worker died with signal 6"
    assert outcome_of(code).bad_end is None


def test_too_little_memory_and_a_missing_file_are_failures(demo_out):
    huge = job_of("mlx", demo_out / "mlx-int4", workload=Workload(8, 4, 10**12))
    assert "mlx-int4 needs" in run_job(huge, 120).failure
    assert "no.gguf" in run_job(job_of("llama.cpp", demo_out / "no.gguf"), 60).failure


def test_trials_fill_the_window_but_not_the_warmup(demo_out):
    held = b"x" * (700 << 20)  # not in the worker's peak
    job = job_of("mlx", demo_out / "mlx-int4", min_window_s=0.3, round=2)
    outcome = run_job(job, 120)
    assert 20e6 < outcome.done.peak_memory_bytes < len(held)
    warmup, trial, _ = outcome.trials
    assert (len(warmup.passes), len(trial.passes) > 1, trial.round) == (1, True, 2)
    assert all(each[-1][1] - each[0][0] >= 0.3e9 for each in (trial.prefills, trial.passes))
    assert (outcome.done.logits, outcome.done.gate) == (None, None)  # of the first round only


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_worker_too(number, outcome_of, tmp_path):
    """The worker sends us the signal, then sleeps for an hour."""
    before = signal.signal(number, signal.SIG_DFL)
    code = (
        "import os, pathlib, signal, sys, time\n"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
        f"os.kill(os.getppid(), {int(number)})\ntime.sleep(3600)"
    )
    written = tmp_path / "pid"
    with pytest.raises(SystemExit) as stopped, stopped_by_sigterm():
        outcome_of(code, 120, str(written))
    assert stopped.value.code == 128 + number
    assert not psutil.pid_exists(int(written.read_text()))
    assert signal.signal(number, before) == signal.SIG_DFL
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # by nohup
    with stopped_by_sigterm():
        os.kill(os.getpid(), signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("logit", [np.nan, 0.0])
def test_the_engine_is_closed_after_success_and_failure(logit, monkeypatch):
    engine, sent = FakeEngine(FakeClock()), []
    engine.last_logits = lambda: np.full(4096, logit, np.float32)
    monkeypatch.setattr(worker, "check_memory", lambda *_: (None, None))
    monkeypatch.setattr(worker, "open_engine", lambda *_: engine)
    expected = pytest.raises(EdgeError, match="not finite") if np.isnan(logit) else nullcontext()
    with expected:
        worker._work(job_of("llama.cpp", "m"), sent.append)
    messages = [] if np.isnan(logit) else [*["Measured"] * 3, "Done"]
    assert [type(message).__name__ for message in sent] == messages
    assert engine.closed


# --- whole runs

JOBS = [job_of("mlx", name, workload=Workload(10, 3)) for name in "abc"]


class Workers:
    """Replaces run_job: 10 s of work, two trials; `dies` are pairs (path, round) that fail."""

    def __init__(self, clock, dies=()):
        self.clock, self.dies, self.ran = clock, dies, []

    def __call__(self, job, timeout_s, on_trial):
        self.ran.append((job.path, job.round))
        begin_ns = self.clock.now_ns
        self.clock.now_ns += 10 * NS
        if (job.path, job.round) in self.dies:
            return Outcome(failure="the worker died with signal 11")
        stamps = [begin_ns + i * NS for i in (3, 4, 5)]
        trials = [make_trial(10, [(begin_ns, begin_ns + NS)], [stamps]) for _ in range(2)]
        for one in trials:
            on_trial(one)
        return Outcome(trials, done())


@pytest.fixture
def go(monkeypatch):
    """go(rounds, dies, machine=..., ...): the run, its workers, the rows that were reported."""

    def go(rounds, dies=(), machine=None, new_meter=None, **settings):
        fake = FakeMachine(monkeypatch, **(machine or {}))
        workers, reported = Workers(fake.clock, dies), []
        meter = new_meter(fake) if new_meter else fake.new_meter
        monkeypatch.setattr(runner, "run_job", workers)
        run = Run(JOBS, rounds, meter, **settings)
        run.run_rounds(reported.append, lambda *_: None)
        return run, workers.ran, reported, fake

    return go


def test_orders_are_seeded_permutations():
    orders, again, other = (Run(JOBS[:1] * 5, 20, None, seed).order for seed in (3, 3, 4))
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert orders == again != other


def test_every_row_runs_in_every_round_in_the_recorded_order(go):
    run, ran, reported, fake = go(3, seed=5)
    assert ran == [("abc"[row], n) for n, order in enumerate(run.order) for row in order]
    assert reported == [row for order in run.order for row in order]
    assert [[r.round for r in runs] for runs in run.runs] == [[0, 1, 2]] * 3
    assert run.finished
    assert (fake.clock.slept, run.idle_w) == ([], None)  # there is no meter


def test_rows_of_one_workload_take_turns_and_rounds_are_added_while_wanted(monkeypatch):
    fake = FakeMachine(monkeypatch)
    groups, more = [], [True, True, False]

    def in_turns(jobs, timeout_s, on_trials):
        groups.append([job.path for job in jobs])
        return [Outcome(failure="it died" if job.path == "c" else None) for job in jobs]

    monkeypatch.setattr(runner, "run_in_turns", in_turns)
    jobs = [*JOBS, job_of("mlx", "d", workload=Workload(9, 3))]
    turns = groups_of(jobs, None)
    run = Run(jobs, 2, fake.new_meter, groups=turns, wants_more=lambda: more.pop(0))
    run.run_rounds(lambda _: None, lambda *_: None)
    assert sorted(map(sorted, groups[:2])) == [["a", "b", "c"], ["d"]]
    assert sorted(map(sorted, groups[2:])) == [["a", "b"]] * 3 + [["d"]] * 3  # c has failed
    assert (run.rounds, len(run.order), [len(runs) for runs in run.runs]) == (4, 4, [4, 4, 1, 4])
    assert run.order == Run(jobs, 4, None).order


def test_batches_take_turns_with_one_sequence_of_the_same_row():
    jobs = [
        job_of(engine, "m", workload=Workload(8, n, batch=batch))
        for engine in ("mlx", "mlx-lm")
        for n in (4, 5)
        for batch in (1, 8)
    ]
    batches = groups_of(jobs, "npl1")
    assert [batches.index(group) for group in batches] == [0, 0, 2, 2, 4, 4, 6, 6]
    engines = groups_of(jobs, "mlx-lm")
    assert [engines.index(group) for group in engines] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_failed_row_is_not_run_again(go):
    run, ran, *_ = go(3, dies=[("b", 1)], machine={"thermal": ["heavy", "heavy", "nominal"]})
    assert run.runs[run.order[0][0]][0].cooldown.waited_s == 2.0
    assert [len(runs) for runs in run.runs] == [3, 2, 3]
    assert ("b", 2) not in ran
    rows = [build_row(TARGET, JOBS[i], run.runs[i], context(3)) for i in range(3)]
    assert [row.verdict == "INVALID" for row in rows] == [False, True, False]


def test_ctrl_c_stops_the_meter(monkeypatch):
    meter, interrupted = Mock(unavailable=None), Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(runner, "run_job", interrupted)
    run = Run(JOBS, 1, lambda: meter, cooldown_s=0, idle_s=0)
    with pytest.raises(KeyboardInterrupt):
        run.run_rounds(lambda _: None, lambda *_: None)
    assert meter.method_calls == [call.start(), call.stop()]


def test_a_meter_that_does_not_move_is_named_and_gives_no_energy(go):
    run, *_ = go(1, machine={"watts": 5.0}, idle_s=10, cooldown_s=0)
    row = build_row(TARGET, JOBS[0], run.runs[0], context())
    assert row.power_w is row.joules_per_token is row.prefill_power_w is None
    assert "fake does not move: it read 5.0 W" in row.why_not("power_w")
    assert row.decode_tok_s is not None and row.counts


def test_joules_are_of_the_tokens_of_every_sequence_of_a_batch(monkeypatch):
    fake = FakeMachine(monkeypatch, watts=5.0)
    monkeypatch.setattr(runner, "run_job", Workers(fake.clock))
    jobs = [job_of("mlx", "a", workload=Workload(10, 3, batch=batch)) for batch in (1, 4)]
    run = Run(jobs, 1, fake.new_meter, idle_s=0, cooldown_s=0)
    run.run_rounds(lambda _: None, lambda *_: None)
    windows = [runs[0].outcome.trials[0].decode_energy for runs in run.runs]
    assert [window.tokens for window in windows] == [2, 8]


@pytest.mark.parametrize("then", [None, 3.0])
def test_lost_power_is_a_warning_at_once_and_in_the_rows(go, then):
    """The first process has a meter, the second none, then the next source if there is one."""
    warnings = []

    def meters(fake):
        lost = FakeMeter(fake.clock, unavailable="sudo wants a password")
        after = FakeMeter(fake.clock, then) if then else lost
        return chain([FakeMeter(fake.clock, 5.0), lost], repeat(after)).__next__

    run, *_ = go(1, new_meter=meters, idle_s=0, has_power=True, warn=warnings.append)
    instead = "; fake goes on" if then else ""
    assert warnings == [f"power is no longer measured: sudo wants a password{instead}"]
    first, second, _ = (run.runs[i][0] for i in run.order[0])
    assert (first.power_lost, second.power_lost) == (None, "sudo wants a password")
    before, after = (build_row(TARGET, JOBS[0], [one], context()) for one in (first, second))
    assert before.power_w.median == pytest.approx(5.0)
    assert "power was lost during the run: sudo wants a password" in after.reasons
    assert after.verdict == "WARN"
    assert (after.power_w is None) == (then is None)
    go(1, warn=warnings.append)
    assert len(warnings) == 1  # no meter had worked before

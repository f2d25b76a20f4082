"""The runner against real processes, good and bad."""

import sys

import pytest

from edge.bench.job import Job
from edge.bench.runner import run_job
from edge.bench.workload import Workload

WORKLOAD = Workload(prompt=8, generate=4)


def job(engine, path, **changes):
    fields = {"vocab_size": 4096, "seed": 0, "repetitions": 2, "warmups": 1, "threads": 2}
    return Job(engine, str(path), WORKLOAD, **{**fields, **changes})


def script(code):
    return (sys.executable, "-c", code)


@pytest.mark.parametrize(
    ("engine", "artefact"),
    [
        ("mlx", "mlx-fp16"),
        ("mlx", "mlx-int4"),
        ("mlx-lm", "mlx-int4"),
        ("llama.cpp", "gguf-f16.gguf"),
        ("llama.cpp", "gguf-q5_k_m.gguf"),
    ],
)
def test_a_row_of_every_engine(engine, artefact, demo_out):
    seen = []
    outcome = run_job(job(engine, demo_out / artefact), 120, seen.append)
    assert outcome.failure is None
    assert [t.warmup for t in outcome.trials] == [True, False, False]
    assert seen == outcome.trials
    for trial in outcome.trials:
        assert len(trial.token_ns) == 4
        assert list(trial.token_ns) == sorted(trial.token_ns)
        assert trial.prefill_begin_ns < trial.prefill_end_ns <= trial.token_ns[0]
    assert outcome.load_s > 0
    assert outcome.peak_memory_bytes > 20e6
    assert outcome.facts.weight_bytes_per_token > 1e6


def test_an_artefact_that_is_not_there_fails_with_a_sentence(tmp_path):
    outcome = run_job(job("llama.cpp", tmp_path / "no.gguf"), 60)
    assert "no.gguf cannot be read" in outcome.failure
    assert outcome.trials == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", "died with signal 11"),
        ("raise SystemExit(3)", "died with exit code 3"),
        ("import sys; sys.exit('no memory left')", "no memory left"),
        ("print('hello')", "no message: hello"),
        ("print('[]')", "no message"),
        ("print('5')", "no message"),
        ("print('null')", "no message"),
        ("print('\"x\"')", "no message"),
        ('print(\'{"event": "done"}\')', "no message"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\n')", "no message"),
    ],
)
def test_a_worker_that_misbehaves_is_a_reason_not_a_crash(code, words, tmp_path):
    outcome = run_job(job("mlx", tmp_path), 60, command=script(code))
    assert words in outcome.failure


def test_a_worker_that_hangs_is_stopped(tmp_path):
    outcome = run_job(job("mlx", tmp_path), 0.2, command=script("import time; time.sleep(60)"))
    assert "stopped after 0.2 s" in outcome.failure


def test_a_timeout_beyond_the_clock_is_no_crash(tmp_path):
    outcome = run_job(job("mlx", tmp_path), 1e12, command=script("raise SystemExit(3)"))
    assert "exit code 3" in outcome.failure


def test_depth_is_in_the_cache_before_the_clock_starts(demo_out):
    """Without the depth's prefill the trial's first trim would be refused, and the row fail."""
    deep = Job("mlx", str(demo_out / "mlx-fp16"), Workload(8, 4, 100), 4096, 0, 1, 0, 2)
    outcome = run_job(deep, 120)
    assert outcome.failure is None
    assert len(outcome.trials) == 1


def test_what_was_measured_before_a_death_is_kept(tmp_path):
    trial = (
        '{"event": "trial", "repetition": 0, "warmup": false, "prefill_begin_ns": 1, '
        '"prefill_end_ns": 2, "token_ns": [3, 4], "prompt_tokens": 8}'
    )
    code = f"print('{trial}', flush=True); raise SystemExit(9)"
    outcome = run_job(job("mlx", tmp_path), 60, command=script(code))
    assert len(outcome.trials) == 1
    assert "exit code 9" in outcome.failure

"""The runner against real processes, good and bad."""

import json
import signal
import struct
import sys
from dataclasses import replace

import numpy as np
import psutil
import pytest

from edge.bench import worker
from edge.bench.engines.engine import open_engine
from edge.bench.job import Job
from edge.bench.runner import run_job, stopped_by_sigterm
from edge.bench.workload import Workload
from edge.errors import EdgeError
from tests.bench.fakes import FakeClock, FakeEngine
from tests.support.tiny import CONFIGS, write_checkpoint

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
        ((begin_ns, end_ns),), (stamps,) = trial.prefill_ns, trial.passes_ns
        assert len(stamps) == 4
        assert list(stamps) == sorted(stamps)
        assert begin_ns < end_ns <= stamps[0]
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
        ("import os; os.kill(os.getpid(), 9)", "killed (signal 9), as a system does when memory"),
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
        '{"event": "trial", "repetition": 0, "warmup": false, "prefill_ns": [[1, 2]], '
        '"passes_ns": [[3, 4]], "prompt_tokens": 8}'
    )
    code = f"print('{trial}', flush=True); raise SystemExit(9)"
    outcome = run_job(job("mlx", tmp_path), 60, command=script(code))
    assert len(outcome.trials) == 1
    assert "exit code 9" in outcome.failure


@pytest.mark.parametrize(
    "said",
    [
        "RuntimeError: [malloc] Unable to allocate 9000000000 bytes.",
        "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPU",
        "cudaMallocAsync(&data, size, stream) failed: out of memory",
        "MemoryError",
        "std::bad_alloc",
    ],
)
@pytest.mark.parametrize("dies", [False, True])
def test_memory_that_ran_out_is_said_with_what_to_do(said, dies, tmp_path):
    if dies:
        code = f"import os, sys; print({said!r}, file=sys.stderr, flush=True); os.abort()"
    else:
        code = f"import json; print(json.dumps({{'event': 'failed', 'reason': {said!r}}}))"
    failure = run_job(job("mlx", tmp_path), 60, command=script(code)).failure
    assert said.rstrip(".") in failure
    assert "close other programs, or choose a smaller artefact" in failure


def test_a_worker_that_asks_for_what_is_not_there_says_so(tmp_path):
    """For real: no machine has an exabyte."""
    failure = run_job(job("mlx", tmp_path), 60, command=script("bytearray(1 << 60)")).failure
    assert "exit code 1 (MemoryError), which is what happens when memory runs out" in failure


def test_a_quantised_cache_and_its_check_reach_the_row(demo_out):
    """Through JSON to the worker, there to the engine, and back as a remark."""
    outcome = run_job(job("mlx", demo_out / "mlx-int4", kv_bits=8, repetitions=1), 120)
    assert outcome.failure is None
    assert outcome.facts.kv_dtype == "8 bits in groups of 32"


def test_a_model_larger_than_the_machine_is_a_failed_row(tmp_path):
    path = write_checkpoint(tmp_path / "m", CONFIGS["plain"])
    tensor = {"dtype": "F16", "shape": [1 << 40], "data_offsets": [0, 2 << 40]}
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    outcome = run_job(job("mlx", path), 120)
    assert "m needs" in outcome.failure
    assert "GB of weights" in outcome.failure
    assert outcome.trials == []


def test_the_peak_is_the_workers_own_not_its_parents(demo_out):
    size = 700 << 20
    held = b"x" * size
    outcome = run_job(job("mlx", demo_out / "mlx-int4", repetitions=1), 120)
    del held
    assert 20e6 < outcome.peak_memory_bytes < size


def test_a_window_is_filled_with_passes(demo_out):
    """The warm-up is one pass of the full shape; trials repeat it until their window is full."""
    asked = job("mlx", demo_out / "mlx-int4", repetitions=1, min_window_s=0.3, round=2)
    warmup, trial = run_job(asked, 120).trials
    assert (len(warmup.prefill_ns), len(warmup.passes_ns)) == (1, 1)
    assert len(trial.passes_ns) > 1
    for begin_ns, end_ns in (trial.prefill_window_ns, trial.decode_window_ns):
        assert end_ns - begin_ns >= 0.3e9
    assert {len(stamps) for stamps in trial.passes_ns} == {4}
    assert trial.round == 2


def test_a_joint_workload_runs_on_a_real_engine(demo_out):
    joint = replace(job("mlx", demo_out / "mlx-int4"), workload=Workload(8, 4, 5, joint=True))
    outcome = run_job(joint, 120)
    assert outcome.failure is None
    assert [len(t.passes_ns[0]) for t in outcome.trials] == [4, 4, 4]


def test_the_devices_memory_is_told_apart(demo_out):
    mlx = run_job(job("mlx", demo_out / "mlx-int4", repetitions=1), 120)
    assert 3e6 < mlx.peak_device_bytes < mlx.peak_memory_bytes
    gguf = run_job(job("llama.cpp", demo_out / "gguf-q6_k.gguf", repetitions=1), 120)
    assert gguf.peak_device_bytes is None  # it keeps no count


def test_sigterm_takes_the_worker_along(tmp_path):
    """The worker signals us when it runs, and would go on for an hour."""
    before = signal.getsignal(signal.SIGTERM)
    code = (
        "import os, pathlib, signal, sys, time\n"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(3600)"
    )
    written = tmp_path / "pid"
    command = (sys.executable, "-S", "-c", code, str(written))
    with pytest.raises(SystemExit) as stopped, stopped_by_sigterm():
        run_job(job("mlx", "nowhere"), 120, command=command)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not psutil.pid_exists(int(written.read_text()))
    assert signal.getsignal(signal.SIGTERM) == before


DONE = (
    "import json, os, sys; sys.stdin.read(); "
    "print(json.dumps({'event': 'done', 'load_s': 1.0, 'peak_memory_bytes': 5, 'facts': "
    "{'device': 'GPU', 'compute_dtype': 'f', 'kv_dtype': 'f', 'threads': 1, "
    "'weight_bytes_per_token': 1, 'kv_bytes_per_position': 1}}), flush=True); "
)


def test_a_process_that_dies_after_its_work_leaves_a_remark():
    """As llama.cpp's does on macOS where a model is not freed."""
    outcome = run_job(job("mlx", "m"), 60, command=script(DONE + "os.abort()"))
    assert outcome.failure is None
    assert outcome.bad_end == "after its work the worker died with signal 6"
    assert run_job(job("mlx", "m"), 60, command=script(DONE)).bad_end is None


@pytest.mark.parametrize("broken", [False, True])
def test_the_engine_is_closed_whatever_happens(broken, monkeypatch, tmp_path):
    engine = FakeEngine(FakeClock())
    engine.last_logits = lambda: np.full(4096, np.nan if broken else 0.0, np.float32)
    monkeypatch.setattr(worker, "_open", lambda job: engine)
    asked = job("mlx", tmp_path)
    with (tmp_path / "channel").open("w") as channel:
        if broken:
            with pytest.raises(EdgeError, match="not finite"):
                worker._measure(asked, channel)
        else:
            worker._measure(asked, channel)
    assert engine.closed


def test_llama_cpp_is_freed_with_its_engine(demo_out):
    engine = open_engine("llama.cpp", demo_out / "gguf-q6_k.gguf", 64, 2)
    session = engine._session
    assert session._model and session._context
    engine.close()
    assert session._model is None and session._context is None

"""llama-bench's output becomes trials: by a stand-in that prints what the real one does, and by
the real one where it is on the PATH."""

import json
import shutil
import sys
from itertools import count

import pytest

from edge.bench.engines.llama_bench import LlamaBench
from edge.bench.job import Job
from edge.bench.workload import Workload
from edge.errors import EdgeError

STAND_IN = """#!{python}
import json, sys
words = sys.argv[1:]
given = dict(zip(words[::1], words[1::1]))
prompt, generate, runs = (int(given[flag]) for flag in ("-p", "-n", "-r"))
tests = [(prompt, 0)] * (prompt > 0) + [(0, generate)] * (generate > 0)
if "-pg" in given:
    tests += [tuple(map(int, given["-pg"].split(",")))]
if {mode!r} == "dies":
    print("error: failed to load model", file=sys.stderr)
    sys.exit(1)
found = []
for number, (p, n) in enumerate(tests, 1):
    head = f"llama-bench: benchmark {{number}}/{{len(tests)}}:"
    print(head, "starting", file=sys.stderr)
    print(head, "warmup prompt run", file=sys.stderr)
    for run in range(1, runs + 1):
        if p:
            print(f"{{head}} prompt run {{run}}/{{runs}}", file=sys.stderr)
        if n:
            print(f"{{head}} generation run {{run}}/{{runs}}", file=sys.stderr)
    found.append(dict(
        build_commit="0c1e570", build_number=1, cpu_info="Xeon", gpu_info="", backends="CPU",
        n_threads=int(given["-t"]), type_k="f16", n_gpu_layers=-1, flash_attn=-1, n_batch=2048,
        n_prompt=p, n_gen=n, n_depth=int(given["-d"]),
        samples_ns=[1000 * (p + 10 * n) + run for run in range(runs)]))
if {mode!r} == "lies":
    found[0]["samples_ns"].pop()
print("nonsense" if {mode!r} == "babbles" else json.dumps(found))
"""


def job(path, **changed):
    values = {
        "engine": "llama-bench",
        "path": str(path),
        "workload": Workload(64, 16, 8),
        "vocab_size": 4096,
        "seed": 0,
        "repetitions": 3,
        "warmups": 1,
        "threads": 2,
        "round": 1,
        **changed,
    }
    return Job(**values)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    def put(mode="works"):
        program = tmp_path / "bin" / "llama-bench"
        program.parent.mkdir(exist_ok=True)
        program.write_text(STAND_IN.format(python=sys.executable, mode=mode))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))

    return put


def clock():
    ticks = count(10**9, 10**6)
    return lambda: next(ticks)


def test_both_tests_make_one_trial(stand_in, demo_out):
    stand_in()
    bench = LlamaBench(job(demo_out / "gguf-q6_k.gguf"), clock())
    warmup, *trials = bench.trials()
    assert warmup.warmup and len(trials) == 3
    assert [t.repetition for t in trials] == [1, 2, 3]
    assert {t.round for t in trials} == {1}
    assert trials[1].ttft_s == pytest.approx(64_001e-9)
    assert trials[1].prefill_tok_s == pytest.approx(64 / 64_001e-9)
    # All 16 tokens over their time, the first included: llama-bench's own rate.
    assert trials[1].decode_tok_s == pytest.approx(16 / 160_001e-9)
    assert trials[0].passes_ns[0][0] > trials[0].prefill_ns[0][0]


def test_short_repetitions_are_gathered_until_the_window_is_full(stand_in, demo_out):
    stand_in()
    asked = job(demo_out / "gguf-q6_k.gguf", min_window_s=0.001)
    *_, last = LlamaBench(asked, clock()).trials()
    assert (len(last.prefill_ns), len(last.passes_ns)) == (17, 7)  # 64 and 160 microseconds each
    assert sum(b - a for a, b in last.prefill_ns) >= 1e6


@pytest.mark.parametrize(
    ("workload", "prefills", "decodes"), [(Workload(64, 0), 1, 0), (Workload(0, 16), 0, 1)]
)
def test_one_test_alone(stand_in, demo_out, workload, prefills, decodes):
    stand_in()
    *_, trial = LlamaBench(job(demo_out / "gguf-q6_k.gguf", workload=workload), clock()).trials()
    assert (len(trial.prefill_ns), len(trial.passes_ns)) == (prefills, decodes)


def test_a_joint_test_is_divided_where_generation_begins(stand_in, demo_out):
    stand_in()
    asked = job(demo_out / "gguf-q6_k.gguf", workload=Workload(640, 1600, 0, True))
    *_, trial = LlamaBench(asked, clock()).trials()
    assert trial.prefill_ns[0][1] == trial.passes_ns[0][0]
    total_ns = trial.passes_ns[0][-1] - trial.prefill_ns[0][0]
    assert total_ns == 1000 * (640 + 16000) + 2
    assert len(trial.passes_ns[0]) == 1601


def test_facts_name_the_build(stand_in, demo_out):
    stand_in()
    bench = LlamaBench(job(demo_out / "gguf-q6_k.gguf"), clock())
    list(bench.trials())
    facts = bench.facts()
    assert facts.build == "llama-bench 0c1e570 (1), CPU; fa -1, b 2048"
    assert (facts.threads, facts.gpu_layers, facts.kv_dtype) == (2, -1, "float16")
    assert facts.kv_bytes_per_position == 2 * 4 * 256 * 2
    assert any("latencies are its mean" in remark for remark in facts.remarks)
    json.dumps(facts.build)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("dies", "exit code 1 .error: failed to load model"),
        ("babbles", "something else than expected"),
        ("lies", "0 times|something else than expected"),
    ],
)
def test_what_goes_wrong_is_said(stand_in, demo_out, mode, message):
    stand_in(mode)
    with pytest.raises(EdgeError, match=message):
        list(LlamaBench(job(demo_out / "gguf-q6_k.gguf"), clock()).trials())


def test_without_the_program(monkeypatch, tmp_path, demo_out):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgeError, match="not on the PATH"):
        LlamaBench(job(demo_out / "gguf-q6_k.gguf"), clock())


@pytest.mark.skipif(not shutil.which("llama-bench"), reason="llama-bench is not on the PATH")
@pytest.mark.parametrize("joint", [False, True])
def test_the_real_one(demo_out, joint):
    import time

    asked = job(demo_out / "gguf-q6_k.gguf", workload=Workload(32, 8, 4, joint), repetitions=2)
    bench = LlamaBench(asked, time.monotonic_ns)
    warmup, *trials = bench.trials()
    assert warmup.warmup and len(trials) == 2
    assert all(trial.decode_tok_s > 1 and trial.prefill_tok_s > 1 for trial in trials)
    assert bench.facts().threads == 2
    assert bench.peak_bytes() > 5e6

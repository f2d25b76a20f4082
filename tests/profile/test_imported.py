import copy
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import with_escapes
from edge.profile.check import check
from edge.profile.imported import Told, import_results
from edge.profile.profile import Profile, ProfileError, decode
from tests.support.foreign_results import llama_bench, llama_test, mlx_lm_benchmark

PATH = Path("results.json")
MAINS = Told(on_mains=True)
KNOWN = Told("m2 max", "mlx-community/stable-code-3b-4bit", on_mains=True)
PROMPT, DECODE = llama_test(512, rate=1200), llama_test(0, 128)


def rows_of(data, told=MAINS):
    return import_results(data, PATH, told).rows


def changed(**changes):
    return llama_bench(llama_test(0, 128, **changes))


def test_llama_bench_becomes_a_row_as_ours_with_its_origin(tmp_path):
    profile = import_results(llama_bench(), PATH, MAINS)
    (row,) = profile.rows
    assert (row.verdict, row.source, str(row.workload)) == ("VALID", "llama-bench", "pp512, tg128")
    assert (row.artefact, row.engine, row.precision) == ("gguf-q4_0", "llama.cpp", "Q4_0")
    assert (profile.model.name, profile.model.parameters) == ("stable-code-3b", 2795443200)
    assert (profile.device.name, profile.software["llama.cpp"]) == ("Apple M2 Max", "1a2b3c4")
    assert profile.created_utc == "2026-11-20T12:00:00+00:00"
    assert row.decode_tok_s.median == pytest.approx(60, rel=1e-3) and row.decode_tok_s.n == 5
    assert row.bandwidth_fraction == pytest.approx(60 * 1608571392 / 409.6e9, rel=1e-3)
    assert row.ttft_s is row.power_w is row.peak_memory_bytes is None
    saved = tmp_path / "saved.json"
    saved.write_text(profile.to_json())
    assert check([saved], names=("anna",)).faults == []
    assert "anna" not in saved.read_text()
    lines = b"\n".join(json.dumps(test).encode() for test in (PROMPT, DECODE))
    assert import_results(lines, PATH, MAINS) == profile


def test_mlx_lm_benchmark_has_its_rate_corrected():
    profile = import_results(mlx_lm_benchmark(), PATH, KNOWN)
    (row,) = profile.rows
    assert row.decode_tok_s.median == pytest.approx(133.5 * 127 / 128)
    assert row.prefill_tok_s.median == pytest.approx(1621.1)
    assert (row.artefact, row.engine, row.source) == ("mlx-int4", "mlx-lm", "mlx_lm.benchmark")
    assert (str(row.workload), row.peak_memory_bytes) == ("pp512+tg128", 2310000000)
    assert (profile.model.name, profile.device.name) == ("stable-code-3b", "Apple M2 Max")
    assert "sampling" not in profile.method.excluded
    assert any("(n+1)/n, and is 0.79% too high" in reason for reason in row.reasons)


@pytest.mark.parametrize(
    ("data", "told", "verdict", "words"),
    [
        (llama_bench(), Told(), "WARN", "power source is not stated: add --mains"),
        (changed(rate=270), MAINS, "WARN", "106% of the 409.6 GB/s"),
        (changed(rate=400), MAINS, "INVALID", "157% of the 409.6 GB/s of the memory"),
        (changed(rate=400, model_type="qwen3moe 30B.A3B Q4_0"), MAINS, "WARN", "how many bytes"),
        (changed(rate=400, model_size=9 * 10**7), MAINS, "VALID", "fit in the cache"),
        (changed(rate=400), Told(bandwidth_gb_s=800, on_mains=True), "VALID", "embedding table"),
        (changed(gpu_info="Apple M4 Max", rate=400), MAINS, "INVALID", "of the 546.0 GB/s"),
        (changed(gpu_info="Apple M4 Max"), MAINS, "WARN", "give it with --bandwidth-gb-s"),
        (changed(gpu_info="NVIDIA H200", cpu_info="EPYC"), MAINS, "WARN", "--bandwidth-gb-s"),
        (changed(gpu_info="", cpu_info=""), MAINS, "WARN", "chip is not stated: give it with"),
        (changed(model_filename=""), MAINS, "WARN", "model is not stated: give it with --model"),
        (changed(repetitions=2), MAINS, "WARN", "only 2 trials: use -r 3 or more"),
        (changed(spread=0.4), MAINS, "WARN", "decode varies by 13% between trials"),
        (changed(spread=1.8), MAINS, "INVALID", "decode varies by 57%"),
        (changed(n_depth=None), MAINS, "WARN", "context length is missing (n_depth)"),
        (changed(rate=5000, model_size=10**6), MAINS, "WARN", "takes 0.025 s, too short"),
        (changed(samples_ns=[]), MAINS, "WARN", "samples_ns is missing"),
        (changed(samples_ts=[60.47] * 5, spread=0), MAINS, "INVALID", "n + 1 tokens in the time"),
        (changed(samples_ts=[70.0] * 5, spread=0), MAINS, "INVALID", "1.167 times n / time:"),
        (llama_bench(llama_test(512, 128)), MAINS, "INVALID", "use -p and -n"),
        (mlx_lm_benchmark(), Told(), "WARN", "chip is not stated"),
        (mlx_lm_benchmark(), KNOWN, "WARN", "how many bytes a token reads"),
        (mlx_lm_benchmark(rates=[50.0]), KNOWN, "WARN", "only 1 trial: use -n 3"),
        (mlx_lm_benchmark(average=140.0), KNOWN, "INVALID", "averages are not those of its trials"),
        (mlx_lm_benchmark().replace(b"134.5", b"fast"), KNOWN, "INVALID", "lines are missing or"),
        (mlx_lm_benchmark(batch=4), KNOWN, "INVALID", "of 4 sequences together"),
        (mlx_lm_benchmark(head=False), KNOWN, "INVALID", "context length is missing: keep the"),
    ],
)
def test_doubts_have_a_verdict_and_a_reason(data, told, verdict, words):
    (row,) = rows_of(data, told)
    assert row.verdict == verdict
    assert any(words in reason for reason in row.reasons), row.reasons


def test_order_matters_until_another_order_agrees():
    tests = [PROMPT, DECODE, llama_test(0, 128, n_depth=4096, rate=40)]
    once, deep = rows_of(llama_bench(*tests))
    assert "2 tests ran once, in a fixed order" in once.reasons[0]
    assert str(deep.workload) == "tg128 @ d4096"
    agreeing, _ = rows_of(llama_bench(*tests, *reversed(tests)))
    assert (agreeing.verdict, agreeing.decode_tok_s.n) == ("VALID", 10)
    assert agreeing.decode_tok_s.ci95 is not None  # of two runs
    other = [llama_test(0, 128, rate=75), PROMPT, tests[2]]
    differing, _ = rows_of(llama_bench(*tests, *other))
    assert any("decode differs by 25% between runs" in reason for reason in differing.reasons)


def test_rows_with_other_settings_or_models_stay_apart():
    rows = rows_of(llama_bench(DECODE, llama_test(0, 128, n_ubatch=1024)))
    assert [row.artefact for row in rows] == [
        "gguf-q4_0 (n_ubatch=512)",
        "gguf-q4_0 (n_ubatch=1024)",
    ]
    other = {"model_filename": "a\\Mistral-7B.Q5_K_M.gguf", "model_type": "llama 7B Q5_K - Medium"}
    profile = import_results(llama_bench(DECODE, llama_test(0, 128, **other)), PATH, MAINS)
    assert profile.model.name == "several models"
    assert [row.model.name for row in profile.rows] == ["stable-code-3b", "Mistral-7B"]
    assert profile.rows[1].artefact == "gguf-q5_k_m (Mistral-7B)"
    builds = rows_of(llama_bench(DECODE, llama_test(0, 128, build_commit="5d6e7f8")))
    assert [row.decode_tok_s.n for row in builds] == [5, 5]
    decodes = [DECODE, llama_test(0, 256), PROMPT]
    assert [str(row.workload) for row in rows_of(llama_bench(*decodes))] == [
        *("pp512", "tg128", "tg256")
    ]


@pytest.mark.parametrize(
    ("data", "told", "words"),
    [
        (llama_bench()[:-20], MAINS, "is not JSON"),
        (changed(samples_ts=[-1.0]), MAINS, "is broken in test 1"),
        (changed(n_gen="many"), MAINS, "is broken in test 1"),
        (b'["samples_ts"]', MAINS, "is not a list of up to 2000 tests"),
        (llama_bench(DECODE, llama_test(0, 128, gpu_info="Apple M4")), MAINS, "several machines"),
        (llama_bench(), Told("m4"), "was measured on Apple M2 Max, not on Apple M4"),
        (b"generation_tps=", KNOWN, "has no trial: give the whole output"),
    ],
)
def test_broken_files_are_refused_in_one_sentence(data, told, words):
    with pytest.raises(ProfileError, match=words):
        import_results(data, PATH, told)


def test_other_files_are_not_results():
    assert import_results(b'{"schema": 1}', PATH, MAINS) is None
    assert import_results(b"\0\xff", PATH, MAINS) is None


VALUES = st.sampled_from(
    [None, True, 0, -1, 2**63, 10**400, 1e308, 5e-324, [], {}, [0.0], "", "\ud800", "\x1b[2J|\n`"]
)


@settings(max_examples=int(os.environ.get("EDGE_FUZZ_CASES", "120")), deadline=None)
@given(st.data())
def test_arbitrary_results_are_judged_or_refused(data):
    tests = copy.deepcopy([PROMPT, DECODE])
    text = data.draw(st.sampled_from([b"", mlx_lm_benchmark()]))
    if not text:
        for _ in range(data.draw(st.integers(1, 3))):
            test = data.draw(st.sampled_from(tests))
            test[data.draw(st.sampled_from(list(test)))] = data.draw(VALUES)
        text = llama_bench(*tests)
    if data.draw(st.booleans()):
        cut = data.draw(st.integers(0, len(text)))
        text = text[:cut] + data.draw(st.binary(max_size=4)) + text[cut + 1 :]
    told = Told(*data.draw(st.tuples(*[st.none() | st.text(max_size=9)] * 2)))
    try:
        profile = import_results(text, PATH, told)
    except ProfileError as error:
        assert with_escapes(str(error)) == str(error)
        return
    if profile is not None:
        assert decode(profile.to_json().encode(), PATH, Profile) == profile
        assert all(row.reasons for row in profile.rows)

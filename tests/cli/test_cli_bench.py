import math
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge.bench import workload
from edge.bench.runner import split_trials
from edge.cli import bench
from edge.cli.main import main, parser_of
from edge.cli.options import bench as options
from edge.errors import EdgeError
from edge.profile.profile import Workload, read
from tests.bench.fakes import FakeMeter


def parsed(*words):
    return parser_of("bench").parse_args(["demo", *words, "--rows", "mlx-int4", "gguf-f16"])


def planned(*words):
    args = parsed(*words)
    options.check(args)
    return [job for job, _ in bench.plan(args, bench.find_work(args).targets)]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], [(512, 128)]),
        (["-p", "16,32", "-n", "8"], [(16, 8), (32, 0)]),
        (["-p", "8-32+8", "-n", "0"], [(8, 0), (16, 0), (24, 0), (32, 0)]),
        (["-p", "8-64*2", "-n", "0"], [(8, 0), (16, 0), (32, 0), (64, 0)]),
        (["-p", "8-10", "-n", "0"], [(8, 0), (9, 0), (10, 0)]),
        (["-p", "8,8", "-n", "16,32"], [(8, 16), (0, 32)]),
        (["-p", "0", "-n", "32"], [(0, 32)]),
        (["-p", "0", "-n", "0", "-pg", "16,4"], [(16, 4, 0, True)]),
        (
            ["-p", "8", "-n", "2", "-d", "0,64", "-pg", "16,4"],
            [(8, 2), (16, 4, 0, True), (8, 2, 64), (16, 4, 64, True)],
        ),
        (["-p", "500", "-n", "9", "-d", "524"], [(500, 9, 524)]),
        (["-p", "8", "-n", "4", "-npl", "1"], [(8, 4)]),
        (
            ["-p", "8", "-n", "4", "-d", "0,64", "-npl", "1,4,4"],
            [(8, 4), (8, 4, 0, False, 4), (8, 4, 64), (8, 4, 64, False, 4)],
        ),
        (
            ["-p", "0", "-n", "0", "-pg", "8,4", "--parallel", "2-4*2"],
            [(8, 4, 0, True, 2), (8, 4, 0, True, 4)],
        ),
        (["--suite", "quick"], [(128, 32)]),
    ],
)
def test_every_artefact_has_every_workload_once(flags, expected):
    jobs = planned(*flags)
    assert [(job.engine, job.workload) for job in jobs] == [
        (engine, Workload(*numbers)) for engine in ("mlx", "llama.cpp") for numbers in expected
    ]


def test_engines_cache_bits_and_suites_follow_the_flags():
    assert [job.engine for job in planned("--peers")] == ["mlx", "mlx-lm", "llama.cpp"]
    assert [planned("--kv-bits", bits)[0].kv_bits for bits in ("4", "8")] == [4, 8]
    assert (planned()[0].kv_bits, planned()[0].repetitions) == (None, 2)
    assert [planned(*flags)[0].check for flags in ((), ("--no-check",))] == [True, False]
    assert planned()[0].longest == 1024
    assert tuple(workload.SUITES) == options.SUITES


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suite", "quick", "-n", "9"], "leave out -n"),
        (["--suite", "quick", "-npl", "9"], "leave out -npl"),
        (["-p", "0", "-n", "1"], "nothing to measure"),
        (["-p", "8", "-n", "2,1"], "nothing to measure"),
        (["-p", "500", "-d", "525"], "1025 positions, demo was trained for 1024"),
        (["-pg", "1000,25"], "1025 positions"),
    ],
)
def test_workloads_without_a_rate_or_beyond_the_context_are_refused(flags, message):
    with pytest.raises(EdgeError, match=message):
        planned(*flags)


@pytest.mark.parametrize(
    ("context_tokens", "depths"),
    [
        (600, [0, 64]),
        (1024, [0, 128, 256, 512]),
        (2560, [0, 1024, 2048]),
        (4096, [0, 1024, 1792, 3584]),
        (32768, [0, 1024, 4096, 16384]),
    ],
)
def test_the_depths_of_a_suite_fit_the_context(context_tokens, depths):
    warnings = []
    found = workload.suite_workloads("depth", context_tokens, "x", warnings.append)
    assert [each.depth for each in found] == depths
    assert all(each.context_tokens <= context_tokens for each in found)
    assert len(warnings) == (context_tokens < 16384)


def test_workloads_that_a_suite_leaves_out_are_in_one_warning(capsys):
    planned("--suite", "depth")
    (warning,) = capsys.readouterr().err.splitlines()
    assert "as demo was trained for 1024 positions: pp512, tg128 @ d1024; pp512" in warning
    assert warning.endswith("@ d256; pp512, tg128 @ d512")
    with pytest.raises(EdgeError, match="needs 512 positions"):
        workload.suite_workloads("depth", 100, "x", print)


def test_trials_are_spread_over_rounds():
    asked = [(5, 3), (1, 3), (6, 3), (8, 4), (5, 1)]
    assert [split_trials(*each) for each in asked] == [(3, 2), (1, 1), (3, 2), (4, 2), (1, 5)]


@pytest.mark.parametrize(
    ("words", "free", "threads", "warning"),
    [
        ([], 4, 4, ""),
        ([], 1, 1, "other programs use 3 of 4 cores"),
        ([], 0, 1, "llama.cpp gets -t 1: close them"),
        (["-t", "1"], 1, 1, ""),
        (["-t", "1"], 0, 1, "other programs use 4 of 4 cores"),
    ],
)
def test_threads_are_the_free_cores_or_as_asked_for(
    monkeypatch, capsys, words, free, threads, warning
):
    monkeypatch.setattr(bench, "usable_cores", lambda: 4)
    monkeypatch.setattr("edge.bench.cooldown.free_cores", lambda: free)
    assert bench._free_threads(parsed(*words), True) == threads
    errors = capsys.readouterr().err
    assert warning in errors and bool(warning) == bool(errors)


def test_the_wait_for_an_idle_machine_is_announced(monkeypatch, capsys):
    free = [1, 4]
    monkeypatch.setattr(bench, "usable_cores", lambda: 4)
    monkeypatch.setattr("edge.bench.cooldown.free_cores", lambda: free.pop(0))
    monkeypatch.setattr("edge.bench.cooldown.PERIOD_S", 0.0)
    assert bench._free_threads(parsed("--wait-idle"), False) == 4
    said = "edge bench: waiting up to 300 s until 4 of 4 cores are free\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("mlx", "gguf", "source"),
    [("CPU", "CPU", "rapl"), ("GPU", "GPU", "nvml"), ("CPU", "GPU", "none")],
)
def test_the_automatic_meter_covers_the_processors_that_compute(monkeypatch, mlx, gguf, source):
    meters = {
        name: partial(SimpleNamespace, source=name, unavailable=None) for name in ("nvml", "rapl")
    }
    asked = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("edge.bench.processors.platform.system", lambda: "Linux")
    monkeypatch.setattr("edge.power.choose.METERS", meters)
    monkeypatch.setattr(
        "edge.bench.processors.run_child",
        lambda _, question, *__: asked.append(question) or [gguf, mlx],
    )
    targets = bench.find_work(parsed()).targets
    chosen = bench._new_meter(parsed(), targets)()
    assert (chosen.source, asked) == (source, [["GGUF", "MLX"]])
    assert bench._new_meter(parsed("--power", "nvml"), targets)().source == "nvml"  # as named


@pytest.mark.parametrize(
    "words",
    [
        *(["-p", text] for text in ("five", "8-", "8-32+0", "32-8", "1-100000", "99999999999")),
        *(["-pg", text] for text in ("512", "512,1", "0,8", "8-9,8")),
        *(
            ["-t", "100000"],
            ["--min-window", "nan"],
            ["--min-effect", "-3"],
            ["--bandwidth-gb-s", "0"],
        ),
    ],
)
def test_invalid_arguments_are_refused(words, capsys):
    with pytest.raises(SystemExit) as failure:
        parsed(*words)
    assert failure.value.code == 2
    assert f"edge bench: {words[0]}" in capsys.readouterr().err


def test_the_profile_has_trials_power_and_bandwidth(demo_out, tmp_path, monkeypatch):
    # Meters in the order of use: is there power, idle before, two rounds, idle after.
    meters = [FakeMeter(time, watts) for watts in (0.0, 2.5, 25.0, 25.0, 3.5)]
    monkeypatch.setattr(bench, "choose_meter", lambda *_: meters.pop(0))
    monkeypatch.setattr("edge.profile.verdict.INVALID_RELATIVE_SD", math.inf)  # a busy machine's
    # As on a processor whose cache is smaller than the demo.
    monkeypatch.setattr("edge.device.describe.last_level_cache_bytes", lambda: 1 << 20)
    words = ["demo", "--rows", "gguf-q6_k", "--out", str(demo_out), "--save", str(tmp_path)]
    words += ["-p", "16", "-n", "16", "-r", "2", "--rounds", "2", "--min-window", "0.05"]
    words += ["--bandwidth-gb-s", "123"]
    assert main(["bench", *words, "--idle", "0.01", "--cooldown", "0"]) == 0
    profile = read(*tmp_path.glob("*.json"))
    method, bandwidth = profile.method, profile.device.memory_bandwidth
    assert (method.finished, method.min_window_s) == (True, 0.05)
    assert method.order == [["gguf-q6_k on llama.cpp, pp16, tg16"]] * 2
    assert (bandwidth.gb_s, bandwidth.source) == (123.0, "given")
    (row,) = profile.rows
    both = [(0, True), (0, False), (1, True), (1, False)]
    assert [(trial.round, trial.warmup) for trial in row.trials] == both
    windows = [trial.decode_energy for trial in row.counted]
    assert min(window.window_s for window in windows) >= 0.05
    assert [q.median for q in (row.power_w, row.prefill_power_w)] == pytest.approx([25.0] * 2)
    idle = [method.idle[when]["watts"] for when in ("before", "after")]
    assert idle == pytest.approx([2.5, 3.5])
    gross_j, net_j = row.joules_per_token.median, row.joules_per_token_net.median
    seconds = [window.window_s / window.tokens for window in windows]
    assert (gross_j, net_j) == pytest.approx((25 * sum(seconds) / 2, 22 * sum(seconds) / 2))
    share = row.decode_tok_s.median * row.bytes_per_token / 123e9
    assert 0 < row.bandwidth_fraction == pytest.approx(share)
    series = row.processes[0].power_series  # on the trials' clock
    trial = row.counted[0]
    assert series.begin_ns[0] < trial.prefill_ns[0]
    assert series.end_ns[-1] >= trial.pass_end_ns[-1]


@pytest.mark.parametrize("room", [1 << 40, 1000])
def test_rows_are_compared_with_a_baseline_of_the_same_run(
    demo_out, tmp_path, monkeypatch, capsys, room
):
    memory = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=room))
    monkeypatch.setattr("edge.bench.runner.psutil", memory)
    words = ["demo", "--rows", "gguf-q6_k", "gguf-f16", "--out", str(demo_out)]
    words += [
        "--save",
        str(tmp_path),
        "-p",
        "8",
        "-n",
        "8",
        "-r",
        "2",
        "--rounds",
        "2",
        "--no-check",
    ]
    words += ["--min-window", "0", "--cooldown", "0", "--power", "none", "--baseline"]
    assert main(["bench", *words, "gguf-q6"]) == 1
    assert "give one of these: gguf-q6_k, gguf-f16." in capsys.readouterr().err
    main(["bench", *words, "gguf-f16"])
    printed, said = capsys.readouterr()
    profile = read(*tmp_path.glob("*.json"))
    in_turns = room > 1000  # without room for both models one process runs after the other
    assert (profile.method.in_turns, profile.method.baseline) == (in_turns, "gguf-f16")
    assert ("do not fit into memory together" in said) != in_turns
    row, base = profile.rows
    assert (row.baseline, base.ratios, row.gate) == ("gguf-f16", {}, None)
    assert row.ratios["decode_tok_s"].rounds == 2
    assert "Decode ratio" in printed and "ratios are to gguf-f16" in printed
    first, second = ([t.prefills[0][0] for t in each.trials[:2]] for each in (row, base))
    overlap = max(first[0], second[0]) < min(first[1], second[1])  # each waits for the other
    assert overlap == in_turns


def test_quality_and_speed_are_in_one_profile(demo_out, tmp_path, capsys):
    out, save = tmp_path / "out", tmp_path / "profiles"
    out.mkdir()  # scores are kept beside the artefacts
    shutil.copy(demo_out / "gguf-q6_k.gguf", out)
    shutil.copytree(demo_out / "mlx-fp16", out / "mlx-fp16")
    words = ["demo", "--rows", "gguf-q6_k", "--out", str(out), "--save", str(save)]
    words += ["-p", "8", "-n", "8", "-r", "1", "--min-window", "0", "--power", "none"]
    assert main(["bench", *words, "--quality", "512"]) == 0
    printed, said = capsys.readouterr()
    (saved,) = save.glob("*.json")
    assert "measuring takes about 10 s: 1 row x 1 trial," in said
    assert said.endswith(f"next: edge report {saved}\n")
    assert "KL" in printed
    assert "add --quality" not in printed
    (row,) = read(*save.glob("*.json")).rows  # the reference has no row
    assert row.quality.reference == "mlx-fp16"
    assert 0.0005 < row.quality.kl_mean < 0.05
    assert 0.8 < row.quality.top1_agreement < 1
    assert row.quality.tokens == 511
    assert list((out / "eval").iterdir())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stopped_run_says_where_its_profile_is(stop, capsys):
    for is_saved, words in ((True, "measured so far is in a/b.json"), (False, "no profile was")):
        writer = SimpleNamespace(path=Path("a/b.json"), is_saved=is_saved)
        with pytest.raises(stop), bench._names_the_partial_profile(writer):
            raise stop
        assert words in capsys.readouterr().err

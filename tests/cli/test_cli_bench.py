"""What `edge bench` plans from its arguments, and runs in this process."""

import json
import os
import shutil
import statistics
import sys

import pytest

from edge.bench import workload
from edge.cli import bench
from edge.cli.main import main, parser_of
from edge.cli.options.bench import SUITES
from edge.convert.checkpoint import open_checkpoint
from edge.errors import EdgeError
from edge.model.kv_cache import KV_BITS
from edge.power.choose import NoMeter
from edge.profile.profile import Workload, read
from tests.support.fake_powermetrics import CPU_W, GPU_W, install


def parsed(*words):
    return parser_of("bench").parse_args(["demo", *words, "--rows", "mlx-int4", "gguf-f16"])


def planned(*words):
    return [job for job, _ in bench._plan(parsed(*words), open_checkpoint("demo"))]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], [(512, 128)]),
        (["-p", "16,32", "-n", "8"], [(16, 8), (32, 0)]),
        (["-p", "8-32+8", "-n", "0"], [(8, 0), (16, 0), (24, 0), (32, 0)]),
        (["-p", "8-64*2", "-n", "0"], [(8, 0), (16, 0), (32, 0), (64, 0)]),
        (["-p", "8-10", "-n", "0"], [(8, 0), (9, 0), (10, 0)]),
        (["-p", "8", "-n", "2", "-d", "0,64"], [(8, 2, 0), (8, 2, 64)]),
        (["-p", "0", "-n", "0", "-pg", "16,4"], [(16, 4, 0, True)]),
        (["--suite", "quick"], [(128, 32)]),
    ],
)
def test_rows_times_workloads(flags, expected):
    jobs = planned(*flags)
    assert [(job.engine, job.workload) for job in jobs] == [
        (engine, Workload(*numbers)) for engine in ("mlx", "llama.cpp") for numbers in expected
    ]


def test_engines_cache_bits_and_suites_follow_the_flags():
    assert [job.engine for job in planned("--peers")] == ["mlx", "mlx-lm", "llama.cpp"]
    assert [planned("--kv-bits", str(bits))[0].kv_bits for bits in KV_BITS] == list(KV_BITS)
    assert planned()[0].kv_bits is None
    assert tuple(workload.SUITES) == SUITES
    with pytest.raises(EdgeError, match="leave out -n"):
        planned("--suite", "quick", "-n", "9")


@pytest.mark.parametrize(
    ("flags", "rounds", "each"),
    [
        ([], 3, 2),
        (["-r", "1"], 1, 1),
        (["-r", "6"], 3, 2),
        (["-r", "8", "--rounds", "4"], 4, 2),
        (["--rounds", "1"], 1, 5),
    ],
)
def test_trials_are_spread_over_rounds(flags, rounds, each):
    args, jobs = parsed(*flags), planned(*flags)
    assert {job.repetitions for job in jobs} == {each}
    without, with_power = (bench._new_run(args, jobs, None, has_power) for has_power in (0, 1))
    assert (without.rounds, without.idle_s, with_power.idle_s) == (rounds, 0, 10)
    method = bench._method(args)
    assert (method.processes_per_row, method.trials_per_process) == (rounds, each)


@pytest.mark.parametrize(
    ("mlx", "gguf", "source"),
    [("CPU", "CPU", "rapl"), ("GPU", "GPU", "nvml"), ("CPU", "GPU", "none")],
)
def test_the_automatic_meter_covers_what_computes(monkeypatch, mlx, gguf, source):
    """A board that idles beside a working CPU has watts too, and they are not the work's."""

    def meter(name):
        meter = NoMeter("")
        meter.source, meter.unavailable = name, None
        return meter

    asked = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("edge.bench.processors.platform.system", lambda: "Linux")
    monkeypatch.setattr("edge.power.choose._build", meter)
    monkeypatch.setattr(
        "edge.bench.processors.run_child",
        lambda _, question, *__: asked.append(question) or [gguf, mlx],
    )
    chosen = bench._new_meter(parsed())()
    assert (chosen.source, asked) == (source, [["GGUF", "MLX"]])
    assert bench._new_meter(parsed("--power", "nvml"))().source == "nvml"  # as asked for


@pytest.mark.parametrize(
    "words",
    [
        *(["-p", text] for text in ("five", "-5", "8-", "8-32+0", "0-32*2", "32-8", "")),
        *(["-p", text] for text in ("1-100000", "99999999999")),
        *(["-pg", text] for text in ("512", "512,1", "0,8", "8-9,8")),
        ["--suite", "huge"],
        ["--min-window", "-1"],
        ["--min-window", "nan"],
        ["--cooldown", "x"],
        ["--idle", "1e9"],
        ["--bandwidth-gb-s", "0"],
        ["--rounds", "0"],
        ["--kv-bits", "5"],
        ["--power", "sun"],
        ["--power", "replay:FILE"],
    ],
)
def test_invalid_arguments_are_refused(words, capsys):
    with pytest.raises(SystemExit) as failure:
        parsed(*words)
    assert failure.value.code == 2
    assert f"error: argument {words[0]}" in capsys.readouterr().err


# --- runs


def test_a_run_writes_a_valid_profile_with_its_order_and_windows(
    demo_out, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["-p", "16", "-n", "16", "--min-window", "0.05", "-r", "2", "--rounds", "2"]
    words += ["--rows", "mlx-int4", "gguf-q6_k", "--out", str(demo_out), "-o", "json"]
    assert main(["bench", "demo", *words, "--bandwidth-gb-s", "123"]) == 0
    (saved,) = (tmp_path / "profiles" / "local").glob("*.json")
    assert json.loads(capsys.readouterr().out) == json.loads(saved.read_text())
    profile = read(saved)
    assert profile.method.finished is True
    assert [sorted(order) for order in profile.method.order] == [
        ["gguf-q6_k on llama.cpp, pp16, tg16", "mlx-int4 on mlx, pp16, tg16"]
    ] * 2
    assert profile.method.min_window_s == 0.05
    bandwidth = profile.device.memory_bandwidth
    assert (bandwidth.gb_s, bandwidth.source) == (123.0, "given")
    for row in profile.rows:
        assert [(t.round, t.warmup) for t in row.trials] == [
            (0, True), (0, False), (1, True), (1, False),
        ]  # fmt: skip
        for trial in row.counted:
            assert trial.passes[-1][1] - trial.passes[0][0] >= 0.05e9
        assert [p.round for p in row.processes] == [0, 1]
        assert row.token_latency_ms["p50"] <= row.token_latency_ms["p99"]


@pytest.fixture(scope="module")
def metered(demo_out, tmp_path_factory):
    """One row on a stand-in for powermetrics, which uses a tenth while nothing runs: its profile.

    Idle power before and after, prefill and decode windows of half a second.
    """
    folder = tmp_path_factory.mktemp("metered")
    install(folder / "bin")
    words = ["bench", "demo", "--rows", "gguf-q6_k", "--out", str(demo_out), "--save", str(folder)]
    words += ["-p", "16", "-n", "16", "-r", "1", "--min-window", "0.5", "--bandwidth-gb-s", "123"]
    words += ["--power", "powermetrics", "--idle", "0.5", "--cooldown", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("FAKE_POWERMETRICS", "by-worker")
        patch.setattr("edge.power.powermetrics.DEFAULT_INTERVAL_MS", 50)
        # As on a processor whose cache is smaller than the demo.
        patch.setattr("edge.device.describe.last_level_cache_bytes", lambda: 1 << 20)
        assert main(words) == 0
    (saved,) = folder.glob("*.json")
    return read(saved)


def test_a_meters_watts_reach_the_profile(metered):
    (row,) = metered.rows
    assert row.power_w.median == pytest.approx(CPU_W + GPU_W, rel=0.1)
    assert row.prefill_power_w.median == pytest.approx(CPU_W + GPU_W, rel=0.1)
    (trial,) = row.counted
    window = trial.decode_energy
    assert window.coverage == trial.energy_coverage == pytest.approx(1.0)
    assert window.records >= 5 and window.missing is None
    assert window.joules == trial.energy_j
    assert window.joules["GPU"] / window.joules["CPU"] == pytest.approx(GPU_W / CPU_W, rel=0.1)
    joules = sum(window.joules.values()) / window.coverage
    assert row.joules_per_token.median == pytest.approx(joules / window.tokens)
    share = row.decode_tok_s.median * row.bytes_per_token / 123e9
    assert 0 < row.bandwidth_fraction == pytest.approx(share)
    series = row.processes[0].power_series  # on the trials' clock
    assert series.begin_ns[0] < trial.prefill_ns[0]
    assert series.end_ns[-1] >= trial.pass_end_ns[-1]
    assert set(series.milliwatts) == {"CPU", "GPU", "ANE"}
    assert series.thermal[0].level == "nominal"
    # A stand-in cannot pass for Apple's.
    assert row.power.source == "powermetrics stand-in"
    assert any("powermetrics is a stand-in here" in reason for reason in row.reasons)


def test_net_energy_is_less_the_idle_power(metered):
    (row,) = metered.rows
    idle = metered.method.idle
    watts = [idle[when]["watts"] for when in ("before", "after")]
    assert watts == pytest.approx([0.1 * (CPU_W + GPU_W)] * 2, rel=0.25)
    assert idle["net_of_w"] == pytest.approx(statistics.mean(watts))
    gross_j, net_j = row.joules_per_token.median, row.joules_per_token_net.median
    window = row.counted[0].decode_energy
    assert gross_j - net_j == pytest.approx(idle["net_of_w"] * window.window_s / window.tokens)
    assert 0 < net_j < gross_j


# --- quality

QUICK = ["-p", "8", "-n", "8", "-r", "1", "--rounds", "1", "--min-window", "0", "--power", "none"]


def test_quality_and_speed_are_in_one_profile(demo_out, tmp_path, capsys):
    out, save = tmp_path / "out", tmp_path / "profiles"
    out.mkdir()  # scores are kept beside the artefacts
    shutil.copy(demo_out / "gguf-q6_k.gguf", out)
    shutil.copytree(demo_out / "mlx-fp16", out / "mlx-fp16")
    words = ["demo", "--rows", "gguf-q6_k", "--out", str(out), "--save", str(save), *QUICK]
    assert main(["bench", *words, "--quality", "512"]) == 0
    printed = capsys.readouterr().out
    assert "KL" in printed
    assert "add --quality" not in printed
    (file,) = save.glob("*.json")
    (row,) = read(file).rows  # what it is compared with has no row
    assert row.quality.reference == "mlx-fp16"
    assert 0.0005 < row.quality.kl_mean < 0.05
    assert 0.8 < row.quality.top1_agreement < 1
    assert row.quality.tokens == 511
    assert list((out / "eval").iterdir())


def test_random_weights_are_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["synthetic:stable-code-3b", "--layers", "1", "--rows", "gguf-f16", *QUICK]
    assert main(["bench", *words, "--quality"]) == 1
    assert "random weights" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

"""What `edge bench` plans from its arguments; the runs themselves are in test_cli.py."""

import json
import os
import statistics
import sys

import pytest

from edge.cli.bench import _method, _new_meter, _new_run, _plan
from edge.cli.main import main, parser_of
from edge.convert.checkpoint import open_checkpoint
from edge.model.kv_cache import KV_BITS
from edge.power.choose import NoMeter
from edge.profile.reading import read_profile
from edge.report.markdown import markdown_section
from tests.support.fake_powermetrics import CPU_W, GPU_W, install
from tests.support.profiles import faults


def parsed(*words):
    return parser_of("bench").parse_args(["demo", *words, "--rows", "mlx-int4", "gguf-f16"])


def planned(*words):
    args = parsed(*words)
    return [job for job, _ in _plan(args, open_checkpoint("demo"))]


@pytest.mark.parametrize(
    ("flags", "engines"),
    [([], ["mlx", "llama.cpp"]), (["--peers"], ["mlx", "mlx-lm", "llama.cpp"])],
)
def test_a_peer_is_its_own_row(flags, engines):
    assert [job.engine for job in planned(*flags)] == engines


@pytest.mark.parametrize("bits", [None, *KV_BITS])
def test_the_bits_of_the_cache_are_in_the_job(bits):
    flags = [] if bits is None else ["--kv-bits", str(bits)]
    assert planned(*flags)[0].kv_bits == bits


def test_bits_that_no_cache_has_are_refused(capsys):
    with pytest.raises(SystemExit):
        planned("--kv-bits", "5")
    assert "--kv-bits" in capsys.readouterr().err


def test_rows_times_workloads():
    jobs = planned("-p", "16,32", "-n", "8", "-d", "0,64")
    asked = [(j.engine, j.workload.prompt, j.workload.depth) for j in jobs]
    assert len(asked) == len(set(asked)) == 8
    assert [engine for engine, *_ in asked] == ["mlx"] * 4 + ["llama.cpp"] * 4


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
    run = _new_run(args, jobs, lambda: NoMeter("none here"), has_power=False)
    assert run.settings.rounds == rounds
    method = _method(args)
    assert (method["processes_per_row"], method["trials_per_process"]) == (rounds, each)


def test_idle_power_is_measured_where_there_is_a_meter():
    def idle_s(has_power, *words):
        new_meter = lambda: NoMeter("none here")  # noqa: E731
        return _new_run(parsed(*words), planned(), new_meter, has_power).settings.idle_s

    assert (idle_s(False), idle_s(True), idle_s(True, "--idle", "0")) == (0, 10, 0)


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
    chosen = _new_meter(parsed())()
    assert (chosen.source, asked) == (source, [["GGUF", "MLX"]])
    assert _new_meter(parsed("--power", "nvml"))().source == "nvml"  # as asked for


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--min-window", "-1", "not a number of seconds"),
        ("--min-window", "nan", "not a number of seconds"),
        ("--cooldown", "x", "not a number of seconds"),
        ("--idle", "1e9", "not a number of seconds"),
        ("--bandwidth-gb-s", "0", "not a number of GB/s"),
        ("--rounds", "0", "at least 1"),
        ("--power", "sun", "invalid choice: 'sun'"),
        ("--power", "replay:FILE", "invalid choice: 'replay:FILE'"),
    ],
)
def test_what_makes_no_sense_is_refused(flag, value, words, capsys):
    with pytest.raises(SystemExit):
        parsed(flag, value)
    assert words in capsys.readouterr().err


@pytest.fixture
def benched(demo_out, tmp_path, monkeypatch, capsys):
    """benched(*words): a run of two rows of the demo, in this process; its profile."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        small = ["-p", "16", "-n", "16", "--min-window", "0.05", "-r", "2", "--rounds", "2"]
        rows = ["--rows", "mlx-int4", "gguf-q6_k", "--out", str(demo_out), "-o", "json"]
        code = main(["bench", "demo", *small, *rows, *words])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_a_run_writes_a_valid_profile_with_its_order_and_windows(benched, tmp_path):
    code, profile = benched("--bandwidth-gb-s", "123")
    assert code == 0
    assert faults(profile) == []
    method = profile["method"]
    assert method["finished"] is True
    assert [sorted(order) for order in method["order"]] == [
        ["gguf-q6_k on llama.cpp, pp16, tg16", "mlx-int4 on mlx, pp16, tg16"]
    ] * 2
    assert method["min_window_s"] == 0.05
    assert profile["device"]["memory_bandwidth"] == {"gb_s": 123.0, "source": "given"}
    for row in profile["rows"]:
        assert [(t["round"], t["warmup"]) for t in row["trials"]] == [
            (0, True), (0, False), (1, True), (1, False),
        ]  # fmt: skip
        for trial in row["trials"]:
            if not trial["warmup"]:
                assert trial["pass_end_ns"][-1] - trial["pass_begin_ns"][0] >= 0.05e9
        assert [p["round"] for p in row["processes"]] == [0, 1]
        assert row["token_latency_ms"]["p50"] <= row["token_latency_ms"]["p99"]
    (saved,) = (tmp_path / "profiles" / "local").glob("*.json")
    assert read_profile(saved) == profile


@pytest.fixture(scope="module")
def metered(demo_out, tmp_path_factory):
    """One row on a stand-in for powermetrics, which uses a tenth while nothing runs: its profile.

    Idle power before and after, prefill and decode windows of half a second.
    """
    folder = tmp_path_factory.mktemp("metered")
    install(folder / "bin")
    words = ["bench", "demo", "--rows", "gguf-q6_k", "--out", str(demo_out), "--save", str(folder)]
    words += ["-p", "16", "-n", "16", "-r", "1", "--min-window", "0.5", "--bandwidth-gb-s", "123"]
    words += ["--power", "powermetrics", "--idle", "0.5", "--cooldown", "0", "-o", "json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("FAKE_POWERMETRICS", "by-worker")
        patch.setattr("edge.power.powermetrics.DEFAULT_INTERVAL_MS", 50)
        # As on a processor whose cache is smaller than the demo.
        patch.setattr("edge.device.describe._cache_bytes", lambda _: 1 << 20)
        assert main(words) == 0
    (saved,) = folder.glob("*.json")
    return read_profile(saved)


def test_a_meters_watts_reach_the_profile(metered):
    assert faults(metered) == []
    (row,) = metered["rows"]
    assert row["power_w"]["median"] == pytest.approx(CPU_W + GPU_W, rel=0.1)
    assert row["prefill_power_w"]["median"] == pytest.approx(CPU_W + GPU_W, rel=0.1)
    (trial,) = (t for t in row["trials"] if not t["warmup"])
    window = trial["decode_energy"]
    assert window["coverage"] == trial["energy_coverage"] == pytest.approx(1.0)
    assert window["records"] >= 5 and window["missing"] is None
    assert window["joules"] == trial["energy_j"]
    assert window["joules"]["GPU"] / window["joules"]["CPU"] == pytest.approx(
        GPU_W / CPU_W, rel=0.1
    )
    assert row["joules_per_token"]["median"] == pytest.approx(
        sum(window["joules"].values()) / window["tokens"]
    )


def test_net_energy_is_less_the_idle_power(metered):
    (row,) = metered["rows"]
    idle = metered["method"]["idle"]
    watts = [idle[when]["watts"] for when in ("before", "after")]
    assert watts == pytest.approx([0.1 * (CPU_W + GPU_W)] * 2, rel=0.25)
    assert idle["net_of_w"] == pytest.approx(statistics.mean(watts))
    gross_j, net_j = (row[f"joules_per_token{kind}"]["median"] for kind in ("", "_net"))
    (window,) = (t["decode_energy"] for t in row["trials"] if not t["warmup"])
    assert gross_j - net_j == pytest.approx(
        idle["net_of_w"] * window["window_s"] / window["tokens"]
    )
    assert 0 < net_j < gross_j


def test_a_stand_in_cannot_pass_for_apples(metered):
    (row,) = metered["rows"]
    assert row["power"]["source"] == "powermetrics stand-in"
    assert row["power"]["boundary"].startswith("CPU + GPU + ANE of the SoC, without DRAM")
    claims = "powermetrics is a stand-in here"
    assert [flag for flag in row["power"]["flags"] if claims in flag]
    assert row["verdict"] == "WARN"
    assert [reason for reason in row["reasons"] if claims in reason]
    printed = markdown_section(metered)
    assert claims in printed and "power: powermetrics stand-in" in printed


def test_the_roofline_is_that_of_the_given_bandwidth(metered):
    (row,) = metered["rows"]
    rate = row["decode_tok_s"]["median"]
    assert row["bandwidth_fraction"] == pytest.approx(rate * row["bytes_per_token"] / 123e9)
    assert 0 < row["bandwidth_fraction"] < 1


def test_the_table_shows_watts_and_joules(metered):
    head, _, line = (line for line in markdown_section(metered).splitlines() if line[:1] == "|")
    shown = dict(
        zip(*([c.strip() for c in x.strip("|").split("|")] for x in (head, line)), strict=True)
    )
    (row,) = metered["rows"]
    for column, name in (
        ("Power (W)", "power_w"),
        ("J/token", "joules_per_token"),
        ("Net J/token", "joules_per_token_net"),
    ):
        assert float(shown[column].split()[0]) == pytest.approx(
            row[name]["median"], rel=0.02, abs=0.0006
        )


def test_the_meters_samples_are_on_the_trials_clock(metered):
    (row,) = metered["rows"]
    (process,) = row["processes"]
    series = process["power_series"]
    (trial,) = (t for t in row["trials"] if not t["warmup"])
    assert series["begin_ns"][0] < trial["prefill_ns"][0]
    assert series["end_ns"][-1] >= trial["pass_end_ns"][-1]
    assert set(series["milliwatts"]) == {"CPU", "GPU", "ANE"}
    assert series["thermal"][0]["level"] == "nominal"

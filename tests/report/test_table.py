import copy

import pytest

from edge.report.markdown import markdown_table
from edge.report.table import notes


def row(artefact, engine, rate, **changes):
    quantity = None if rate is None else {"median": rate, "mean": rate, "sd": 1.0, "n": 3}
    trials = [{"warmup": i == 0, "decode_tok_s": rate} for i in range(4)] if rate else []
    return {
        "artefact": artefact,
        "engine": engine,
        "framework": "MLX" if engine.startswith("mlx") else "GGUF",
        "precision": "INT4",
        "workload": {"prompt": 512, "generate": 128, "depth": 0},
        "bits_per_weight": 4.5,
        "decode_tok_s": quantity,
        "prefill_tok_s": quantity,
        "ttft_s": None,
        "power_w": None,
        "peak_memory_bytes": 123e6,
        "verdict": "VALID",
        "reasons": ["no meter"],
        "trials": trials,
        **changes,
    }


PROFILE = {
    "created_utc": "2026-01-01T00:00:00+00:00",
    "device": {"name": "Apple M2 Max", "os": "macOS 27.0"},
    "model": {"name": "demo"},
    "software": {"edge": "1", "mlx": "2", "llama-cpp-python": "3"},
    "rows": [
        row("mlx-int4", "mlx", 52.25),
        row("mlx-int4", "mlx-lm", 1234.5),
        row("gguf-q6_k", "llama.cpp", None, verdict="INVALID", reasons=["it died", "no meter"]),
    ],
}


def test_the_table_begins_with_table_11s_columns():
    lines = markdown_table(PROFILE).splitlines()
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert header[:5] == [
        "Framework",
        "Device",
        "Precision",
        "Throughput (Tok/s)",
        "Power (W)",
    ]
    assert len(lines) == 2 + 3
    assert len({len(line) for line in lines}) == 1  # aligned
    first = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert first[:6] == ["MLX", "Apple M2 Max", "INT4", "52.2 ± 1.0", "—", "52.2 ± 1.0"]
    assert first[7:] == ["123", "0.56", "VALID"]
    assert "MLX (mlx-lm)" in lines[3]
    assert "1234 ± 1" in lines[3]


def test_what_was_not_measured_is_never_a_zero():
    cells = [c.strip() for c in markdown_table(PROFILE).splitlines()[4].strip("|").split("|")]
    assert cells[3:7] == ["—"] * 4
    assert cells[-1] == "INVALID"


def test_notes_say_each_reason_once():
    assert notes(PROFILE) == ["no meter", "gguf-q6_k: it died"]


def headers(profile):
    return [cell.strip() for cell in markdown_table(profile).splitlines()[0].strip("|").split("|")]


def test_columns_that_say_nothing_are_left_out():
    assert not {"J/token", "Net J/token", "Test", "Roofline"} & set(headers(PROFILE))
    profile = copy.deepcopy(PROFILE)
    joules = {"median": 0.5, "mean": 0.5, "sd": 0.01, "n": 3}
    profile["rows"][0].update(joules_per_token=joules, bandwidth_fraction=0.81)
    assert {"J/token", "Roofline"} <= set(headers(profile))
    line = markdown_table(profile).splitlines()[2]
    assert "0.500 ± 0.010" in line
    assert "81%" in line


def test_rows_of_several_workloads_are_told_apart():
    profile = copy.deepcopy(PROFILE)
    profile["rows"][1]["workload"] = {"prompt": 8, "generate": 4, "depth": 64, "joint": True}
    assert "Test" in headers(profile)
    assert "| pp8+tg4 @ d64 |" in markdown_table(profile)
    assert "gguf-q6_k pp512, tg128: it died" in notes(profile)


@pytest.mark.parametrize("engine", ["mlx-lm", "llama-bench"])
def test_a_peer_keeps_its_framework(engine):
    """Older profiles have rows of llama-bench."""
    profile = copy.deepcopy(PROFILE)
    profile["rows"][2].update(engine=engine)
    assert f"| GGUF ({engine}) |" in markdown_table(profile)
    assert f"gguf-q6_k ({engine}): it died" in notes(profile)


def test_quality_has_columns_where_a_row_has_it():
    assert not {"KL (nats)", "PPL ratio", "Top-1"} & set(headers(PROFILE))
    profile = copy.deepcopy(PROFILE)
    profile["rows"][0]["quality"] = {"kl_mean": 0.01234, "perplexity_ratio": 1.01, "tokens": 99}
    profile["rows"][1]["quality"] = {"kl_mean": 0.0, "perplexity_ratio": None}
    assert headers(profile)[-3:] == ["KL (nats)", "PPL ratio", "Verdict"]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")][-3:-1]
        for line in markdown_table(profile).splitlines()[2:]
    ]
    assert cells == [["0.012", "1.0100"], ["0", "—"], ["—", "—"]]


def test_labels_with_commas_are_not_told_apart_by_commas():
    profile = copy.deepcopy(PROFILE)
    profile["rows"][1]["workload"] = {"prompt": 8, "generate": 4, "depth": 64}
    profile["rows"][2]["reasons"] = []
    assert notes(profile) == ["mlx-int4 pp512, tg128; mlx-int4 (mlx-lm) pp8, tg4 @ d64: no meter"]

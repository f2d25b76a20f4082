import copy

import pytest

from edge.report.plot import save_png, throughput_plot
from edge.report.table import markdown_table, notes


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


def test_the_plot_shows_bars_from_zero_every_trial_and_what_is_missing(tmp_path):
    figure = throughput_plot(PROFILE)
    axes = figure.axes[0]
    assert axes.get_ylim()[0] == 0
    assert [bar.get_height() for bar in axes.patches] == [52.25, 1234.5]
    assert [len(dots.get_offsets()) for dots in axes.collections if len(dots.get_offsets())]
    assert "not measured" in [text.get_text() for text in axes.texts]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "mlx-int4",
        "mlx-int4 (mlx-lm)",
        "gguf-q6_k",
    ]
    save_png(figure, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("rows", [0, 1])
def test_small_profiles_draw(rows):
    profile = copy.deepcopy(PROFILE)
    profile["rows"] = profile["rows"][2 : 2 + rows]
    throughput_plot(profile)

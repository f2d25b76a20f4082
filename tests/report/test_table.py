"""Tables, notes, Markdown and CSV of one profile."""

import csv
import io
import re

import pytest

from edge.report.table import (
    HEAD,
    csv_table,
    markdown_section,
    notes,
    profile_table,
    provenance,
    terminal_section,
)
from edge.text import Layout, columns, cut
from tests.support.profiles import (
    GATE,
    failed_row,
    hostile_profile,
    make_profile,
    quality_at,
    typed,
)


@pytest.fixture
def made():
    """Rows: a valid one, a peer without power, a failed one."""
    data = make_profile(artefacts=("mlx-fp16", "mlx-int4", "gguf-f16"))
    first, second, third = data["rows"]
    first["decode_tok_s"] = {"median": 52.25, "mean": 52.0, "sd": 1.04, "n": 3}
    second.update(engine="mlx-lm", power_w=None, joules_per_token=None, verdict="WARN")
    second.update(reasons=["power_w: no meter", "hot"], decode_tok_s={**first["decode_tok_s"]})
    second["decode_tok_s"].update(median=1234.5, sd=None)
    data["rows"][2] = failed_row(third, "it died")
    return data


def cells(data):
    """Texts of every line, by column."""
    head, _, *lines = profile_table(typed(data)).markdown().splitlines()
    names, *values = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)
    )
    return [dict(zip(names, line, strict=True)) for line in values]


def test_the_table_has_the_columns_of_table_11_and_those_with_figures(made):
    first, third, second = cells(made)  # as in the plots, MLX beside the GGUF of as many bits
    table_11 = ["Framework", "Device", "Precision", "Throughput (Tok/s)", "Power (W)"]
    assert list(first)[:5] == table_11
    assert first["Throughput (Tok/s)"] == "52.2 ± 1.0"
    assert (second["Framework"], second["Throughput (Tok/s)"]) == ("MLX (mlx-lm)", "1234")
    assert second["Power (W)"] == third["Throughput (Tok/s)"] == "—"
    assert third["Verdict"] == "INVALID"
    assert first["Test"] == "pp512, tg128"
    optional = {"J/token", "Net J/token", "Roofline", "KL (nats)", "PPL ratio", "Top-1"}
    assert optional & set(first) == {"J/token", "Net J/token", "Roofline"}
    made["rows"][0]["quality"] = {"kl_mean": 0.01234, "perplexity_ratio": 1.01}
    first, _, second = cells(made)
    assert (first["KL (nats)"], first["PPL ratio"], second["PPL ratio"]) == ("0.012", "1.0100", "—")


def test_a_profile_with_batches_has_the_rate_and_latency_of_one_sequence():
    data = make_profile(artefacts=("mlx-int4",), batches=(1, 8))
    one, eight = cells(data)
    row = typed(data).rows[1]
    assert (one["Test"], eight["Test"]) == ("pp512, tg128", "pp512, tg128, npl8")
    assert one["Each (Tok/s)"] == one["Throughput (Tok/s)"]
    assert float(eight["Each (Tok/s)"].split()[0]) == pytest.approx(
        row.decode_tok_s.median / 8, rel=0.01
    )
    assert float(eight["Latency (ms)"]) == pytest.approx(row.token_latency_ms["p50"], rel=0.01)
    assert not {"Each (Tok/s)", "Latency (ms)"} & set(cells(make_profile())[0])
    _, second = csv.DictReader(io.StringIO(csv_table([typed(data)])))
    assert (second["batch"], float(second["token_latency_ms_p90"])) == (
        "8",
        row.token_latency_ms["p90"],
    )
    shown = terminal_section(typed(data), Layout(100))
    assert "npl8" in shown and "Latency (ms)" in shown


def test_notes_have_each_reason_once_and_provenance_has_versions(made):
    assert provenance(typed(made)) == (
        "Apple M2 Max, macOS 15.5 (24F74), edge 0.1.0, mlx 0.32.4, llama-cpp-python 0.3.36, "
        "power: powermetrics, 2026-11-20T12:00:00+00:00"
    )
    made["rows"][0]["reasons"] = ["hot"]
    made["method"]["peak_memory"] = "VmHWM"
    assert notes(typed(made)) == [
        "mlx-fp16, mlx-int4 (mlx-lm): hot",
        "gguf-f16: it died",
        "mlx-int4 (mlx-lm): power_w: no meter",
        "peak memory is the process's VmHWM",
    ]
    made["rows"][1]["workload"]["depth"] = 64
    labels = "mlx-fp16 pp512, tg128; mlx-int4 (mlx-lm) pp512, tg128 @ d64"
    assert notes(typed(made))[0] == f"{labels}: hot"
    made["software"]["edge-revision"] = "0123456789" * 4 + "-dirty"
    made["model"]["synthetic"] = True
    assert "edge 0.1.0 (012345678, changed), mlx 0.32.4" in provenance(typed(made))
    assert provenance(typed(made)).endswith("; random weights")


def test_checked_logits_are_a_note_with_the_worst_row(made):
    made["rows"][0]["gate"] = GATE
    made["rows"][1]["gate"] = {**GATE, "bound": 0.3, "worst_error": 0.01, "prompt_tokens": 1024}
    rows = "logits checked: 2 of 3 rows, up to 1024 prompt tokens at once and in small pieces"
    assert notes(typed(made))[-1] == f"{rows}, largest error 0.0062, up to 0.05 is rounding"
    made["rows"][1]["gate"]["worst_error"] = None
    assert notes(typed(made))[-1] == f"{rows}, largest error not finite, up to 0.3 is rounding"
    first, *_ = csv.DictReader(io.StringIO(csv_table([typed(made)])))
    assert (first["gate_worst_error"], first["gate_positions"]) == ("0.0062", "11")


def test_csv_has_every_figure_unrounded(made):
    made["rows"][0]["quality"] = quality_at(4.5)
    first, third, second = csv.DictReader(io.StringIO(csv_table([typed(made)])))
    rate = made["rows"][0]["prefill_tok_s"]
    assert float(first["prefill_tok_s_median"]) == rate["median"]
    assert float(first["prefill_tok_s_ci95_low"]) == rate["ci95"][0]
    assert (first["memory_bandwidth_gb_s"], first["quality_tokens"]) == ("409.6", "4096")
    assert (second["power_w_median"], third["decode_tok_s_n"]) == ("", "")
    assert second["quality_kl_mean"] == second["quality_reference"] == ""
    assert (second["verdict"], second["reasons"]) == ("WARN", "power_w: no meter; hot")


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_terminal_shows_what_fits_and_wide_shows_all(made, width):
    made["rows"][1]["workload"]["depth"] = 4096
    made["rows"][2]["reasons"] = ["power_w: " + "no meter and " * 30]
    long = made["rows"][0] = {**made["rows"][0], "artefact": "long-" * 12, "verdict": "WARN"}
    long["reasons"] = ["hot: " + "let it cool " * 20, "advice " * 30]
    text = terminal_section(typed(made), Layout(width))
    assert max(map(columns, text.splitlines())) <= width
    for shown in ("pp512, tg128 @ d4096", "52.2 ± 1.0", "WARN", "INVALID", "Row", "tok/s"):
        assert shown in text
    assert "--wide also shows " in text and "--wide shows the notes in full" in text
    assert (text.count("cool"), text.count("advice") < 20) == (20, True)  # why a row is doubtful
    assert "power_w" not in text and cut("名前" * 30, 10) == "名前名前…"
    wide = terminal_section(typed(made), Layout(width, is_wide=True))
    assert "--wide" not in wide and "long-" * 11 in wide and wide.count("advice") == 30


@pytest.mark.parametrize("first", [0, 3])
def test_hostile_strings_stay_in_their_cell(made, first):
    profile = typed(hostile_profile(made, first))
    text = markdown_section(profile)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert not re.search(r"(?<!\\)[<>`\[\]]", text)
    assert all(c.isprintable() or c == "\n" for c in text)
    rows = list(csv.reader(io.StringIO(csv_table([profile]))))
    assert {len(row) for row in rows} == {len(HEAD)}
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@"))]

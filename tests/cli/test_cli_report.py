"""`edge report`: files, output, refusals."""

import csv
import io
import json
import os
import re
import sys

import pytest

from edge.report.table import markdown_section
from tests.support.foreign_results import llama_bench, mlx_lm_benchmark
from tests.support.profiles import ROOT, linux_profile, make_profile, typed
from tests.support.terminal import Terminal

PROFILE = linux_profile()
PROFILE["rows"] = PROFILE["rows"][:2]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A profile in the current folder, without trials, so that fewer plots are drawn."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.json"
    rows = [{**row, "trials": []} for row in PROFILE["rows"]]
    path.write_text(json.dumps({**PROFILE, "rows": rows}))
    return path


def test_table_plots_and_page_are_written(saved, command):
    saved.write_text(json.dumps(PROFILE))
    code, out, err = command("report", saved)
    assert code == 0
    folder = saved.parent / "profiles" / "reports" / "mine"
    files = {name: (folder / name).read_text() for name in ("table.md", "table.csv", "report.html")}
    assert out == files["table.md"] == markdown_section(typed(PROFILE))
    assert len(files["table.csv"].splitlines()) == 3
    assert files["report.html"].startswith("<!doctype html>")
    assert (folder / "plots" / "throughput.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "plots" / "latency.svg").read_text().startswith("<svg")
    plots = len(list((folder / "plots").iterdir()))
    assert err.splitlines() == [
        f"saved {plots} plots in profiles/reports/mine/plots",
        *(f"saved profiles/reports/mine/{name}" for name in files),
    ]


def test_a_baseline_is_in_table_csv_json_page_and_plot(saved, command):
    saved.write_text(json.dumps(PROFILE))
    words = ("report", saved, "--baseline", "mlx-fp16", "--out", "out", "-o")
    made = json.loads(command(*words, "json")[1])
    ((found,),) = made["ratios"]
    ratio = found["decode_tok_s"]
    assert (found["row"], found["baseline"], ratio["rounds"]) == ("mlx-int4", "mlx-fp16", 3)
    low, high = ratio["interval"]
    cell = f"{ratio['ratio']:.3g} ({low:.3g} to {high:.3g})"
    assert "out/plots/ratios.svg" in made["plots"]
    _, markdown, _ = command(*words, "md")
    assert "Decode ratio" in markdown and f"| {cell} |" in markdown
    shown = f"{100 * ratio['detectable']:.2g}%"
    assert "ratios are to mlx-fp16, compared round by round, with 95% intervals" in markdown
    assert f"shows 95% of the time: decode {shown}, prefill" in markdown
    page = (saved.parent / "out" / "report.html").read_text()
    assert cell in page and "Relative to the baseline" in page
    _, line = csv.DictReader(io.StringIO(command(*words, "csv")[1]))
    assert float(line["ratios_decode_tok_s_interval_low"]) == low
    code, _, err = command("report", saved, "--baseline", "mlx-int8")
    assert (code, "is not a row; give one of these: mlx-fp16, mlx-int4." in err) == (1, True)
    assert command("report", "--check", saved, "--baseline", "mlx-fp16")[0] == 1


def test_folder_of_profiles_is_one_report_and_one_json_document(saved, command):
    saved.with_name("other.json").write_text(saved.read_text())
    notes = saved.parent / "out" / "plots" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("kept")
    code, out, err = command("report", saved.parent, "--out", "out", "-o", "json")
    made = json.loads(out)
    assert code == 0
    assert (made["profiles"], made["folder"]) == ([str(saved), f"{saved.parent}/other.json"], "out")
    names = {path.rpartition("/")[2] for path in made["plots"]}
    assert {"1-throughput.svg", "2-throughput.svg"} <= names
    files = [made["page"], made["markdown"], made["csv"], *made["plots"]]
    assert all((saved.parent / file).is_file() for file in files)
    assert (saved.parent / made["page"]).read_text().count("<article ") == 2
    assert (err, notes.read_text(), list((saved.parent / "out").rglob(".*"))) == ("", "kept", [])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mine.json", "broken.json"], "is not JSON"),
        (["empty"], "empty has no profile"),
        (["mine.json", "--out", "mine.json/below"], "cannot be written"),
        (["mine.json"] * 51, "51 profiles are too many .* --devices"),
        (["mine.json", "--chip", "M2"], "need --devices DIR, --check or --import"),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_written(saved, command, words, says):
    saved.with_name("broken.json").write_text("{")
    saved.with_name("empty").mkdir()
    before = sorted(saved.parent.rglob("*"))
    assert re.search(says, command.refused("report", *words))
    assert sorted(saved.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("width", "words", "shown"),
    [
        (80, ["report", "mine.json"], ["pp512, tg128", "VALID", "tok/s"]),
        (
            80,
            ["report", "--check", "bench"],
            ["llama-bench, stable-code-3b", "  - the power", "    "],
        ),
        (80, ["report", "--devices", "."], ["pp512, tg128", "VALID", "Decode (tok/s)"]),
        (
            100,
            ["bench", "--compare", "full", "full"],
            ["pp512, tg128", "no significant"],
        ),
    ],
)
def test_no_line_is_wider_than_the_terminal(saved, width, words, shown):
    saved.with_name("full").write_text(json.dumps(PROFILE))
    saved.with_name("bench").write_bytes(llama_bench())
    command = [sys.executable, "-m", "edge", *words]
    terminal = Terminal(command, saved.parent, {**os.environ, "PYTHONPATH": str(ROOT)}, width)
    lines = terminal.printed()
    terminal.close()
    assert max(map(len, lines)) <= width
    assert all(any(word in line for line in lines) for word in shown), lines


@pytest.mark.parametrize(
    ("words", "head"),
    [
        (["report", "mine.json"], "created_utc,device,"),
        (["report", "--devices", "."], "model,workload,"),
        (["bench", "--compare", "full", "full"], "artefact,engine,workload,quantity,"),
    ],
)
def test_csv_has_a_line_per_row(saved, command, words, head):
    saved.with_name("full").write_text(json.dumps(PROFILE))
    code, out, _ = command(*words, "-o", "csv")
    assert out.endswith("\n") and not out.endswith("\n\n")
    lines = list(csv.DictReader(io.StringIO(out)))
    assert (code, {line["artefact"] for line in lines}) == (0, {"mlx-fp16", "mlx-int4"})
    assert out.startswith(head)


def test_devices_are_compared(tmp_path, command):
    (tmp_path / "a.json").write_text(json.dumps(make_profile(samples=0)))
    (tmp_path / "b.json").write_text(json.dumps(linux_profile()))
    rows = command.json("report", "--devices", tmp_path)["rows"]
    assert any("Apple M2 Max" in row["device"] for row in rows)
    code, out, _ = command("report", "--devices", tmp_path, "--chip", "ryzen")
    assert code == 0 and "Ryzen" in out and "| Apple M2 Max" not in out


def test_check_names_file_and_place(saved, command):
    saved.write_text(json.dumps(PROFILE))
    assert command("report", "--check", saved)[:2] == (0, "1 profile checked: no faults.\n")
    broken = {**PROFILE, "rows": [PROFILE["rows"][0], {**PROFILE["rows"][1], "verdict": "FINE"}]}
    saved.write_text(json.dumps(broken))
    code, out, _ = command("report", "--check", saved)
    assert code == 1 and f"{saved}: rows[1].verdict: " in out
    faults = command.json("report", "--check", saved, code=1)["faults"]
    assert [fault["where"] for fault in faults] == ["rows[1].verdict"]


def test_other_programs_results_are_judged_and_imported(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    bench, text = tmp_path / "bench.json", tmp_path / "mlx.txt"
    bench.write_bytes(llama_bench())
    text.write_bytes(mlx_lm_benchmark(batch=4))
    code, out, _ = command("report", "--check", bench, "--mains")
    head = "llama-bench, stable-code-3b gguf-q4_0, pp512, tg128: VALID"
    assert (code, out.splitlines()[0]) == (0, f"{bench}: {head}")
    found = command.json("report", "--check", bench, text, "--chip", "m2 max", code=1)
    assert [one["verdict"] for one in found["judged"]] == ["WARN", "INVALID"]
    assert (found["files"], found["faults"]) == (0, [])
    for _ in range(2):
        code, out, err = command("report", "--import", bench, "--bandwidth-gb-s", "400")
        assert (code, out.count("WARN")) == (0, 1)
    assert err == "saved profiles/local/bench-2.json\n"
    assert command("report", "--check", "profiles/local")[0] == 0
    code, out, _ = command("report", "profiles/local/bench-2.json", "-o", "md")
    assert ",source,precision," in command("report", "profiles/local", "-o", "csv")[1]
    assert "GGUF (llama-bench)" in out and "imported from llama-bench by edge" in out
    told = ["--chip", "m2 max", "--model", "tiny-4bit", "--out", "mine"]
    bench.with_name("table.md").write_text("| model | size |")
    assert "or what `llama-bench -o json`" in command("report", "--check", "table.md")[1]
    saved = command.json("report", "--import", text, bench, *told)["saved"]
    assert saved == ["mine/mlx.json", "mine/bench.json"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--import", "mine.json"], "is not from llama-bench .* or mlx_lm.benchmark; give"),
        (["--import", "gone.json"], "gone.json is missing"),
        (["--import", "mlx.txt", "--chip", "M2"], "does not name its chip or model; add --chip"),
        (["--import", "cut.json"], "cut.json is not JSON .* give the whole output"),
        (["mine.json", "--mains"], "--mains and --bandwidth-gb-s need --check or --import"),
        (["--check", "mine.json", "--out", "x"], "--check does not go with PROFILE, --out"),
    ],
)
def test_wrong_imports_are_refused(saved, command, words, says):
    saved.with_name("cut.json").write_bytes(llama_bench()[:-9])
    saved.with_name("mlx.txt").write_bytes(mlx_lm_benchmark())
    assert re.search(says, command.refused("report", *words))

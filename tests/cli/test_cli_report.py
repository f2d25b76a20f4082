"""`edge report`: files, printing, refusals."""

import csv
import json

import pytest

from edge.cli import report
from edge.cli.main import parser_of
from edge.errors import EdgeError
from edge.report.table import markdown_section
from tests.support.profiles import linux_profile, make_profile, typed


def run(*words):
    return report.run(parser_of("report").parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def profile():
    made = linux_profile()
    return {**made, "rows": made["rows"][:2]}


@pytest.fixture
def saved(profile, tmp_path, monkeypatch):
    """A profile's file in the current folder, without trials: fewer plots to draw."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.json"
    rows = [{**row, "trials": []} for row in profile["rows"]]
    path.write_text(json.dumps({**profile, "rows": rows}), encoding="utf-8")
    return path


def test_it_writes_table_plots_and_page(saved, profile, capsys):
    saved.write_text(json.dumps(profile), encoding="utf-8")
    assert run(saved) == 0
    out, err = capsys.readouterr()
    folder = saved.parent / "profiles" / "reports" / "mine"
    files = {name: (folder / name).read_text() for name in ("table.md", "table.csv", "report.html")}
    assert out == files["table.md"] + "\n" == markdown_section(typed(profile)) + "\n"
    rows = list(csv.DictReader(files["table.csv"].splitlines()))
    assert [row["artefact"] for row in rows] == ["mlx-fp16", "mlx-int4"]
    assert files["report.html"].startswith("<!doctype html>")
    for plot in ("throughput", "latency"):
        assert (folder / "plots" / f"{plot}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "plots" / f"{plot}.svg").read_text(encoding="utf-8").startswith("<svg")
    plots = len(list((folder / "plots").iterdir()))
    assert err.splitlines() == [
        f"saved {plots} plots in profiles/reports/mine/plots",
        *(f"saved profiles/reports/mine/{name}" for name in files),
    ]


def test_a_folder_of_profiles_is_one_report_and_one_json_document(saved, capsys):
    saved.with_name("other.json").write_text(saved.read_text(encoding="utf-8"), encoding="utf-8")
    notes = saved.parent / "out" / "plots" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("kept")
    assert run(saved.parent, "--out", "out", "-o", "json") == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert (made["profiles"], made["folder"]) == ([str(saved), f"{saved.parent}/other.json"], "out")
    names = {path.rpartition("/")[2] for path in made["plots"]}
    assert {"1-throughput.svg", "2-throughput.svg"} <= names
    files = [made["page"], made["markdown"], made["csv"], *made["plots"]]
    assert all((saved.parent / file).is_file() for file in files)
    assert (saved.parent / made["page"]).read_text(encoding="utf-8").count("<article ") == 2
    assert (err, notes.read_text(), list((saved.parent / "out").rglob(".*"))) == ("", "kept", [])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mine.json", "broken.json"], "is not JSON .*: give a JSON file"),
        (["empty"], "empty has no profile: give a folder"),
        (["absent.json"], "absent.json is missing"),
        ([], "Nothing to report: name a profile"),
        (["mine.json", "--out", "mine.json/below"], "cannot be written"),
        (["mine.json"] * 51, "51 profiles are too many .* --devices"),
        (["--devices", ".", "mine.json"], "--devices stands alone"),
        (["--check", ".", "--out", "x"], "--check stands alone"),
        (["mine.json", "--chip", "M2"], "give --devices DIR too"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_is_written(saved, words, says):
    saved.with_name("broken.json").write_text("{")
    saved.with_name("empty").mkdir()
    before = sorted(saved.parent.rglob("*"))
    with pytest.raises(EdgeError, match=says):
        run(*words)
    assert sorted(saved.parent.rglob("*")) == before


def test_devices_are_compared(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps(make_profile(samples=0)), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(linux_profile()), encoding="utf-8")
    assert run("--devices", tmp_path, "-o", "json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert any("Apple M2 Max" in row["device"] for row in rows)
    assert run("--devices", tmp_path, "--chip", "ryzen") == 0
    out = capsys.readouterr().out
    assert "Ryzen" in out
    assert "| Apple M2 Max" not in out


def test_check_names_file_and_place(saved, profile, capsys):
    saved.write_text(json.dumps(profile), encoding="utf-8")
    assert run("--check", saved) == 0
    assert capsys.readouterr().out == "1 profile checked: no faults.\n"
    broken = {**profile, "rows": [profile["rows"][0], {**profile["rows"][1], "verdict": "FINE"}]}
    saved.write_text(json.dumps(broken), encoding="utf-8")
    assert run("--check", saved) == 1
    assert f"{saved}: rows[1].verdict: " in capsys.readouterr().out
    assert run("--check", saved, "-o", "json") == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert [fault["where"] for fault in faults] == ["rows[1].verdict"]

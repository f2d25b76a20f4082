"""`edge report`: files, printing, refusals."""

import csv
import json

import pytest

from edge.cli import report
from edge.cli.main import parser_of
from edge.errors import EdgeError
from edge.report.table import markdown_section
from tests.support.profiles import hostile_profile, linux_profile, make_profile, typed


def run(*words):
    return report.run(parser_of("report").parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def profile():
    made = linux_profile()
    made["rows"] = made["rows"][:2]
    return made


@pytest.fixture
def saved(profile, tmp_path, monkeypatch):
    """A profile's file in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(profile), encoding="utf-8")
    return path


def without_trials(profile):
    """The same with fewer plots to draw."""
    return {**profile, "rows": [{**row, "trials": []} for row in profile["rows"]]}


def test_it_writes_table_plots_and_page(saved, profile, capsys):
    assert run(saved) == 0
    out, err = capsys.readouterr()
    assert out == markdown_section(typed(profile)) + "\n"
    folder = saved.parent / "profiles" / "reports" / "mine"
    assert (folder / "table.md").read_text(encoding="utf-8") == markdown_section(typed(profile))
    rows = list(csv.DictReader((folder / "table.csv").open(encoding="utf-8", newline="")))
    assert [row["artefact"] for row in rows] == ["mlx-fp16", "mlx-int4"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>")
    for plot in ("throughput", "latency"):
        assert (folder / "plots" / f"{plot}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "plots" / f"{plot}.svg").read_text(encoding="utf-8").startswith("<svg")
    plots = len(list((folder / "plots").iterdir()))
    assert err.splitlines() == [
        f"saved {plots} plots in profiles/reports/mine/plots",
        "saved profiles/reports/mine/table.md",
        "saved profiles/reports/mine/table.csv",
        "saved profiles/reports/mine/report.html",
    ]


def test_a_folder_of_profiles_is_one_report_and_one_json_document(saved, profile, capsys):
    saved.write_text(json.dumps(without_trials(profile)), encoding="utf-8")
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


def test_what_is_printed_cannot_act_on_a_terminal(saved, profile, capsys):
    saved.write_text(json.dumps(hostile_profile(without_trials(profile))), encoding="utf-8")
    assert run(saved) == 0
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out)


def refused(words, saved, says):
    before = sorted(saved.parent.rglob("*"))
    with pytest.raises(EdgeError, match=says) as caught:
        run(*words)
    text = str(caught.value)
    assert text.isprintable()
    assert text.endswith(".")
    assert sorted(saved.parent.rglob("*")) == before  # no half page


def test_a_broken_profile_is_one_sentence_and_no_half_page(saved):
    fine = saved.with_name("fine.json")
    text = saved.read_text(encoding="utf-8")
    fine.write_text(text, encoding="utf-8")
    for broken, says in (
        (text[: len(text) // 2], "is not JSON .*: give a JSON file"),
        (text.replace('"schema": 1', '"schema": 2'), "install a newer edge"),
        (text.replace('"rows"', '"lines"'), "missing required field `rows`"),
    ):
        saved.write_text(broken, encoding="utf-8")
        refused([fine, saved], saved, says)


def test_what_is_not_there_is_one_sentence(saved, profile):
    saved.write_text(json.dumps(without_trials(profile)), encoding="utf-8")
    (saved.parent / "empty").mkdir()
    refused(["empty"], saved, "empty has no profile: give a folder")
    refused(["absent.json"], saved, "absent.json is missing")
    refused([], saved, "Nothing to report: name a profile")
    refused([saved, "--out", saved / "below"], saved, "cannot be written")
    refused([saved] * 51, saved, "51 profiles are too many .* --devices")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--devices", ".", "mine.json"], "--devices stands alone"),
        (["--check", ".", "--out", "x"], "--check stands alone"),
        (["mine.json", "--chip", "M2"], "give --devices DIR too"),
    ],
)
def test_one_thing_at_a_time(saved, words, says):
    refused(words, saved, says)


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


def test_check_names_file_and_place(saved, capsys):
    assert run("--check", saved) == 0
    assert capsys.readouterr().out
    broken = json.loads(saved.read_text(encoding="utf-8"))
    broken["rows"][1]["verdict"] = "FINE"
    saved.write_text(json.dumps(broken), encoding="utf-8")
    assert run("--check", saved) == 1
    out = capsys.readouterr().out
    assert "mine.json" in out
    assert "rows[1].verdict" in out
    assert run("--check", saved, "-o", "json") == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert [fault["where"] for fault in faults] == ["rows[1].verdict"]

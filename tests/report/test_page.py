"""The page as text: complete, escaped, sealed. What a browser makes of it: test_page_browser."""

import copy
import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edge.errors import EdgeError
from edge.report.csv_table import HEAD, csv_table
from edge.report.markdown import markdown_report
from edge.report.page import render_page, script_json
from edge.report.plots import figures
from edge.report.quality import Quality, quality_of
from edge.report.tidy import read_for_report, tidy
from tests.report.hostile_profiles import TEXTS, with_hostile_strings
from tests.support.profiles import failed_row, mac_profile, quality_at

ROOT = Path(__file__).resolve().parents[2]


class Reader(HTMLParser):
    """Elements, their attributes and the text of scripts, as the standard has them."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.scripts, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        self.text += data


@pytest.fixture(scope="module")
def profile():
    """Three rows: as they should be, without power, failed."""
    made = mac_profile(depths=(0,))
    made["rows"] = made["rows"][:3]
    reason = "power_w: the meter was asleep"
    made["rows"][1].update(power_w=None, joules_per_token=None, verdict="WARN", reasons=[reason])
    made["rows"][2] = failed_row(made["rows"][2], "it ran out of memory")
    return made


def without_plots(profiles):
    return render_page(profiles, [[] for _ in profiles])


def test_the_page_says_what_the_profile_says(profile):
    page = Reader(without_plots([profile])).text
    for words in (
        "stable-code-3b on Apple M2 Max",
        "12 (8 Performance, 4 Efficiency)",
        "409.6 GB/s (table: M2 Max)",
        "macOS 15.5 (24F74)",
        "1 INVALID",
        "it ran out of memory",
        "power_w: the meter was asleep",
        "Stable Code Technical Report",
        "decode rate",
    ):
        assert words in page


def test_what_is_not_measured_is_told_apart_from_what_is_wrong(profile):
    wrong, _, missing = without_plots([profile]).partition("What is not measured, and why")
    assert "it ran out of memory" in wrong.partition("Verdicts and their reasons")[2]
    assert "the meter was asleep" in missing
    assert "the meter was asleep" not in wrong.partition("Verdicts and their reasons")[2]


@pytest.mark.parametrize("change", [{"parameters": 2_795_443_201}, {"name": "stablelm-3b-4e1t"}])
def test_another_model_has_nothing_published_beside_it(change, profile):
    """Of two models with as many parameters only one is that of Table 11."""
    other = copy.deepcopy(profile)
    other["model"] |= change
    assert "Beside the published figures" not in without_plots([other])


def test_several_profiles_have_an_index_and_ids_of_their_own(profile):
    drawn = figures(profile)[:2]
    page = Reader(render_page([profile, profile], [drawn, drawn]))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for tag, a in page.elements if tag == "a" and a["href"].startswith("#")]
    assert {"#profile-1", "#profile-2"} <= set(links)
    assert {link[1:] for link in links} <= set(ids)


def test_the_embedded_json_is_the_profiles(profile):
    profiles = [profile, with_hostile_strings(profile)]
    scripts = Reader(without_plots(profiles)).scripts
    assert len(scripts) == 2
    assert json.loads(scripts[0]) == profiles


@pytest.mark.parametrize("text", TEXTS)
def test_json_in_a_script_neither_ends_it_nor_opens_a_comment(text):
    made = script_json([text])
    assert not re.search("[<>&\u2028\u2029]", made)
    assert json.loads(made) == [text]


@pytest.mark.parametrize("first", range(3))
def test_hostile_strings_are_text_everywhere(profile, first):
    page = without_plots([with_hostile_strings(profile, 3 * first, keys=True)])
    _is_harmless(page)
    assert "{{ 7 * 7 }}" in page


def test_hostile_strings_are_text_in_plots(profile):
    _is_harmless(render_page([with_hostile_strings(profile)]))


def _is_harmless(page):
    reader = Reader(page)
    assert [tag for tag, _ in reader.elements].count("script") == 2
    assert not {"img", "iframe", "object", "embed", "base"} & {tag for tag, _ in reader.elements}
    for _, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on")]
    assert not set("\x00\x1b\u202e\u2066") & set(page.partition('<script type="application')[0])


@pytest.mark.parametrize("first", range(3))
def test_hostile_strings_stay_within_their_cell_of_markdown_and_csv(profile, first):
    spoiled = with_hostile_strings(profile, 3 * first)
    text = markdown_report([spoiled])
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert not re.search(r"(?<!\\)[<>`\[\]]", text)
    assert "\x1b" not in text
    rows = list(csv.reader(io.StringIO(csv_table([spoiled]))))
    assert {len(row) for row in rows} == {len(HEAD)}
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@"))]


def test_csv_has_every_figure_unrounded_and_nothing_for_nothing(profile):
    first, second, third = csv.DictReader(io.StringIO(csv_table([profile])))
    rate = profile["rows"][0]["decode_tok_s"]
    assert float(first["decode_tok_s_median"]) == rate["median"]
    assert float(first["decode_tok_s_ci95_low"]) == rate["ci95"][0]
    assert (second["power_w_median"], third["decode_tok_s_n"]) == ("", "")
    assert (second["verdict"], second["reasons"]) == ("WARN", "power_w: the meter was asleep")


def test_csv_has_quality_and_the_page_a_reason_where_there_is_none(profile):
    measured = copy.deepcopy(profile)
    measured["rows"][0]["quality"] = quality_at(4.5)
    first, second, _ = csv.DictReader(io.StringIO(csv_table([measured])))
    assert float(first["quality_kl_mean"]) == quality_at(4.5)["kl_mean"]
    assert (first["quality_tokens"], first["quality_reference"]) == ("4096", "mlx-fp16")
    assert second["quality_kl_mean"] == second["quality_reference"] == ""
    missing = without_plots([profile]).partition("What is not measured, and why")[2]
    assert "quality was not measured: add --quality" in missing


@pytest.mark.parametrize("value", [1e300, -5.0, True, "bad", [], {}, {"kl_mean": "x"}, {"n": 1}])
def test_quality_that_is_none_is_missing_with_a_reason(profile, value):
    spoiled = copy.deepcopy(profile)
    spoiled["rows"][0]["quality"] = value
    row = tidy(spoiled)["rows"][0]
    assert row["quality"] is None
    assert [reason for reason in row["reasons"] if reason.startswith("quality: ")]


def test_a_part_of_quality_may_be_missing_or_unbelievable():
    found = quality_of({"kl_mean": 0.5, "kl_p99": -1, "top1_agreement": 1.5, "reference": 3})
    assert found == Quality(kl_mean=0.5)


@pytest.mark.parametrize("value", [1e300, -5.0, True, "fast", [], {}])
def test_a_figure_that_nobody_believes_is_missing_with_a_reason(profile, value):
    spoiled = copy.deepcopy(profile)
    spoiled["rows"][0]["decode_tok_s"]["median"] = value
    spoiled["rows"][0].update(bits_per_weight=value, ttft_s=None, peak_memory_bytes=None)
    row = tidy(spoiled)["rows"][0]
    assert (row["decode_tok_s"], row["bits_per_weight"]) == (None, None)
    assert [r for r in row["reasons"] if r.startswith("decode_tok_s: ")]
    assert not [r for r in row["reasons"] if r.startswith("ttft_s: ")]
    line = markdown_report([spoiled]).split("\n")[4]
    assert line.split("|")[4].strip() == "—"
    without_plots([spoiled])
    csv_table([spoiled])


@pytest.mark.parametrize("rows", [0, 1])
def test_small_profiles(profile, rows):
    small = {**profile, "rows": profile["rows"][2 : 2 + rows]}
    assert "No row has a figure that counts." in without_plots([small])
    assert ("No row was measured." in markdown_report([small])) == (rows == 0)


def test_what_is_optional_may_be_absent(profile):
    """As in the profiles of the first version."""
    keys = ("artefact", "engine", "framework", "precision", "workload", "verdict", "reasons")
    rows = [{**{key: row[key] for key in keys}, "trials": []} for row in profile["rows"]]
    old = {**profile, "device": {"name": "x"}, "model": {"name": "y"}, "method": {}, "rows": rows}
    old["software"] = {}
    assert "y on x" in without_plots([old])
    assert markdown_report([old]).startswith("### y on x\n")
    csv_table([old])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1e400", r"rows\[0\].load_s is beyond 1e\+150"),
        ("1" + 400 * "0", r"rows\[0\].load_s is beyond 1e\+150"),
        ("NaN", "NaN is no JSON"),
    ],
)
def test_numbers_beyond_calculation_are_refused(profile, tmp_path, text, says):
    whole = json.dumps({**profile, "rows": [{**profile["rows"][0], "load_s": "HERE"}]})
    path = tmp_path / "profile.json"
    path.write_text(whole.replace('"HERE"', text))
    with pytest.raises(EdgeError, match=says):
        read_for_report(path)


def test_reports_need_nothing_of_what_measures():
    code = (
        "import sys, edge.report.page, edge.report.csv_table, edge.cli.report\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm', 'llama_cpp')"
        " or m.startswith(('edge.model', 'edge.generate', 'edge.convert.sources'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"

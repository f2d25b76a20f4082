"""The page as text; in a browser: test_page_browser."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser

import pytest

from edge.report.page import Source, render_page
from edge.report.plots import Drawn, draw
from tests.report.test_figure import texts_of
from tests.support.profiles import GATE, ROOT, failed_row, hostile_profile, make_profile, typed


class Reader(HTMLParser):
    """Elements, their attributes, and the text of scripts."""

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
    """Rows: one complete, one without power, one failed."""
    made = make_profile(artefacts=("mlx-fp16", "mlx-int4", "gguf-f16"))
    reason = "power_w: the meter was asleep"
    made["rows"][1].update(power_w=None, joules_per_token=None, verdict="WARN", reasons=[reason])
    made["rows"][2] = failed_row(made["rows"][2], "it ran out of memory")
    made["rows"][0]["gate"] = GATE
    return made


def page_of(*profiles, drawn=None):
    drawn = drawn or Drawn([], [])
    return render_page(
        [Source(typed(p), drawn, json.dumps(p, indent=1).encode()) for p in profiles]
    )


def test_the_page_has_facts_verdicts_and_reasons(profile):
    page = Reader(page_of(profile)).text
    for words in (
        *("stable-code-3b on Apple M2 Max", "12 (8 Performance, 4 Efficiency)", "1 INVALID"),
        *("409.6 GB/s (table: Apple M2 Max)", "it ran out of memory"),
        *("prompt 512, depth 64, 11 positions, at once and in", "in float32: largest error 0.017"),
        *("Fastest decode 159 tok/s (mlx-int4, WARN)", "decode rate", "Technical Report"),
    ):
        assert words in page
    wrong, _, missing = page_of(profile).partition("What is not measured, and why")
    wrong = wrong.partition("Verdicts and their reasons")[2]
    assert "it ran out of memory" in wrong
    assert "the meter was asleep" in missing and "the meter was asleep" not in wrong
    assert "quality was not measured: add --quality" in missing
    assert "Beside the published figures" in page_of(profile)
    old = {**profile, "device": {"name": "x"}, "model": {"name": "y"}, "method": {}}
    page = page_of({**old, "software": {}, "rows": []})
    assert "y on x" in page and "Beside the published figures" not in page


def test_several_profiles_have_an_index_and_unique_ids(profile):
    found = draw(typed(profile))
    text = page_of(profile, profile, drawn=Drawn(found.figures[:2], []))
    page = Reader(text)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = set(re.findall(r'href="#([^"]+)"', text))
    clips = set(re.findall(r"url\(#([^)]+)\)", text))
    assert clips and {"profile-1", "profile-2"} <= links
    assert links | clips <= set(ids)


def test_profiles_are_embedded_as_json_without_markup(profile):
    profiles = [{**profile, "unknown": {"x": 1}}, hostile_profile(profile)]
    scripts = Reader(page_of(*profiles)).scripts
    assert len(scripts) == 2
    assert json.loads(scripts[0]) == profiles
    assert not re.search("[<>&\u2028\u2029]", scripts[0])


@pytest.mark.parametrize("first", [0, 3])
def test_hostile_strings_are_escaped(profile, first):
    spoilt = hostile_profile(profile, first)
    drawn = draw(typed(spoilt))
    assert all(texts_of(figure.svg()) for figure in drawn.figures)  # well-formed
    assert "$\\frac{1}{0}$ a_b^c {x" in " ".join(texts_of(drawn.figures[0].svg())) or first
    page = page_of(spoilt, drawn=drawn)
    reader = Reader(page)
    assert "{{ 7 * 7 }}" in page
    assert [tag for tag, _ in reader.elements].count("script") == 2
    assert not {"img", "iframe", "object", "embed", "base"} & {tag for tag, _ in reader.elements}
    for _, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on")]
    assert not set("\x00\x1b\u202e\u2066") & set(page.partition('<script type="application')[0])


def test_reports_import_nothing_that_measures():
    modules = "edge.report.page, edge.report.devices, edge.profile.check"
    command = [sys.executable, "-c", f"import sys, {modules}; print(*sys.modules)"]
    modules = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    heavy = r"(?:mlx|mlx_lm|llama_cpp|edge\.(?:model|generate|convert|bench))(?:\.|$)"
    assert "edge.report.page" in modules
    assert [name for name in modules.split() if re.match(heavy, name)] == []


def test_the_wheel_contains_the_whole_package():
    """Page, corpus and tables are read at run time; the build leaves out what git ignores."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    build = settings["tool"]["hatch"]["build"]
    assert build == {"targets": {**build["targets"], "wheel": {"packages": ["edge"]}}}
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard", "edge"]
        assert subprocess.check_output(command, cwd=ROOT, text=True) == ""

"""The README's plot shows the profile that is in the repository, and a code host can show it."""

import re
from xml.etree import ElementTree

import pytest

from tests.report.test_figure import texts_of
from tests.support.profiles import ROOT
from tools.draw_readme_plot import PLOT, PROFILE, drawn

MOST_BYTES = 60_000


def numbers(svg):
    """Of every place and path, in points."""
    tags = re.findall(r'\b(?:d|x|y|points|transform)="([^"]*)"', svg)
    return [float(text) for tag in tags for text in re.findall(r"-?\d+(?:\.\d+)?", tag)]


def test_it_is_what_the_profile_gives():
    """If it is not: python tools/draw_readme_plot.py."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "](docs/throughput.svg)" in readme
    assert f"](profiles/measured/{PROFILE.name})" in readme
    committed, fresh = PLOT.read_text(encoding="utf-8"), drawn()
    assert texts_of(committed) == texts_of(fresh)
    # A newer library may round otherwise; a bar of another length is another figure.
    assert numbers(committed) == pytest.approx(numbers(fresh), abs=0.5)


def test_a_code_host_can_show_it_in_any_scheme():
    text = PLOT.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    assert not re.search(r"<script|<image|@font-face|<style|href=\"(?!#)", text)
    svg = ElementTree.fromstring(text)
    width, height = svg.get("viewBox").split()[2:]
    ground = next(element for element in svg.iter() if element.tag.endswith("}path"))
    assert ground.get("style") == "fill: #ffffff"  # dark text needs it on a dark page
    assert {width, height} <= set(re.findall(r"[\d.]+", ground.get("d")))

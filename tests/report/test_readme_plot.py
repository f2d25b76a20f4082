"""The plot in the README."""

import re
from xml.etree import ElementTree

import pytest

from tests.report.test_figure import texts_of
from tests.support.profiles import ROOT
from tools.draw_readme_plot import PLOT, PROFILE, drawn


def numbers(svg):
    """Coordinates of all elements, in points."""
    tags = re.findall(r'\b(?:d|x|y|points|transform)="([^"]*)"', svg)
    return [float(text) for tag in tags for text in re.findall(r"-?\d+(?:\.\d+)?", tag)]


def test_the_plot_is_that_of_the_measured_profile():
    """If it is not: python tools/draw_readme_plot.py."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "](docs/throughput.svg)" in readme
    assert f"](profiles/measured/{PROFILE.name})" in readme
    committed, fresh = PLOT.read_text(encoding="utf-8"), drawn()
    assert texts_of(committed) == texts_of(fresh)
    # Versions of matplotlib round differently.
    assert numbers(committed) == pytest.approx(numbers(fresh), abs=0.5)


def test_the_plot_is_self_contained_and_white_beneath():
    text = PLOT.read_text(encoding="utf-8")
    assert len(text) < 60_000
    assert not re.search(r"<script|<image|@font-face|<style|href=\"(?!#)", text)
    svg = ElementTree.fromstring(text)
    width, height = svg.get("viewBox").split()[2:]
    ground = next(element for element in svg.iter() if element.tag.endswith("}path"))
    assert ground.get("style") == "fill: #ffffff"  # for dark pages
    assert {width, height} <= set(re.findall(r"[\d.]+", ground.get("d")))

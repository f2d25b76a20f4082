import re
from xml.etree import ElementTree

import matplotlib
import pytest

from edge.report.figure import finish, legend_columns, new_figure, style
from tests.support.profiles import make_profile, typed

SVG = "{http://www.w3.org/2000/svg}"
PROFILE = typed(make_profile(artefacts=("mlx-int4",), samples=0))


def drawn(name="one", label="a label"):
    with style():
        figure = new_figure(2)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], marker="o")
        axes.set_xticks([0, 1], [label, "b"])
        return finish(figure, name, "Title", PROFILE, [], "Caption.")


def texts_of(svg):
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_equal_figures_give_equal_files():
    assert drawn().svg() == drawn().svg()
    assert drawn().png() == drawn().png()
    figure = drawn()
    whole = figure.svg()
    assert "Caption." in texts_of(whole)
    # A page has the words around the panels already.
    assert texts_of(figure.svg("p1-")) == ["a label", "b", *[f"{n / 5:.1f}" for n in range(6)]]
    assert figure.svg() == whole == figure._repr_svg_()


def test_an_svg_brings_nothing_that_reaches_beyond_it():
    svg = drawn().svg()
    assert svg.startswith("<svg ")
    tags = {element.tag for element in ElementTree.fromstring(svg).iter()}
    assert not tags & {f"{SVG}{name}" for name in ("style", "script", "metadata", "image")}
    assert "2026-11-20T12:00:00" in svg  # the profile's time, in the provenance
    assert not re.search(r"dc:date|<!DOCTYPE|<\?xml", svg)


def test_the_users_settings_are_left_alone_and_do_not_matter():
    before = drawn().svg()
    with matplotlib.rc_context({"font.size": 30, "text.parse_math": True, "svg.fonttype": "path"}):
        assert drawn().svg() == before
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    ("lengths", "columns"), [([], 1), ([10], 1), ([10] * 6, 6), ([40] * 4, 2), ([200] * 3, 1)]
)
def test_a_legend_has_as_many_columns_as_fit(lengths, columns):
    assert legend_columns(["x" * length for length in lengths]) == columns

import re
from xml.etree import ElementTree

from edge.report.figure import finish, new_figure, style
from tests.support.profiles import make_profile, typed

SVG = "{http://www.w3.org/2000/svg}"
PROFILE = typed(make_profile(artefacts=("mlx-int4",), samples=0))


def drawn():
    with style():
        figure = new_figure(2)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], marker="o")
        axes.set_xticks([0, 1], ["a label", "b"])
        return finish(figure, "one", "Title", PROFILE, [], "Caption.")


def texts_of(svg):
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_svg_is_reproducible_and_self_contained():
    figure = drawn()
    svg = figure.svg()
    assert (svg, figure.png()) == (drawn().svg(), drawn().png())
    assert svg.startswith("<svg ") and "Caption." in texts_of(svg)
    # With a prefix, for a page, without heading and notes.
    assert texts_of(figure.svg("p1-")) == ["a label", "b", *[f"{n / 5:.1f}" for n in range(6)]]
    assert figure.svg() == svg == figure._repr_svg_()
    tags = {element.tag for element in ElementTree.fromstring(svg).iter()}
    assert not tags & {f"{SVG}{name}" for name in ("style", "script", "metadata", "image")}
    assert "2026-11-20T12:00:00" in svg  # the profile's time, in the provenance
    assert not re.search(r"dc:date|<!DOCTYPE|<\?xml", svg)

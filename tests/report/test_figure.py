import re
from xml.etree import ElementTree

import matplotlib
import pytest

from edge.report.figure import new_figure, plain, provenance, style, to_png, to_svg
from edge.report.frame import NamedFigure, _legend_columns, finish
from edge.report.plots.ticks import log_ticks
from tests.support.profiles import HOSTILE, mac_profile

SVG = "{http://www.w3.org/2000/svg}"


def drawn(name="one", label="a label"):
    with style():
        figure = new_figure(name, 2)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], marker="o")
        axes.set_xticks([0, 1], [label, "b"])
        return finish(figure, "Title", "Caption.", mac_profile(depths=(0,)), [])


def ids_of(svg):
    return set(re.findall(r'\bid="([^"]+)"', svg))


def texts_of(svg):
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_equal_figures_give_equal_files():
    assert to_svg(drawn().figure) == to_svg(drawn().figure)
    assert to_png(drawn().figure) == to_png(drawn().figure)
    figure = drawn().figure
    assert to_svg(figure) == to_svg(figure)


def test_two_figures_in_one_page_share_no_id():
    one, two = to_svg(drawn("one").figure), to_svg(drawn("two").figure)
    assert len(ids_of(one)) > 10
    assert not ids_of(one) & ids_of(two)


def test_every_reference_is_found_in_its_own_figure():
    svg = to_svg(drawn().figure)
    used = re.findall(r'href="#([^"]+)"', svg) + re.findall(r"url\(#([^)]+)\)", svg)
    assert used
    assert set(used) <= ids_of(svg)


def test_an_svg_brings_nothing_that_reaches_beyond_it():
    svg = to_svg(drawn().figure)
    assert svg.startswith("<svg ")
    tags = {element.tag for element in ElementTree.fromstring(svg).iter()}
    assert not tags & {f"{SVG}{name}" for name in ("style", "script", "metadata", "image")}
    assert "2026-11-20T12:00:00" in svg  # the profile's time, in the provenance
    assert not re.search(r"dc:date|<!DOCTYPE|<\?xml", svg)


def test_text_stays_text():
    svg = to_svg(drawn(label="find me").figure)
    assert "find me" in texts_of(svg)
    assert "sans-serif" in svg


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is(text):
    shown = plain(text)
    svg = to_svg(drawn(label=shown).figure)
    assert shown in texts_of(svg)
    assert "<script" not in svg
    assert to_png(drawn(label=shown).figure).startswith(b"\x89PNG")


def test_text_that_looks_like_an_id_is_left_alone():
    svg = to_svg(drawn(label='id="x" url(#x) href="#x"').figure)
    assert 'id="x" url(#x) href="#x"' in texts_of(svg)


def test_plain_makes_one_short_line():
    assert plain("a\n\tb") == "a b"
    assert plain("a\x00b\u202ec\ud800") == "a\ufffdb\ufffdc\ufffd"
    assert plain("x" * 200, 10) == "x" * 9 + "…"
    assert plain(None) == "None"


def test_the_users_settings_are_left_alone_and_do_not_matter():
    before = to_svg(drawn().figure)
    with matplotlib.rc_context({"font.size": 30, "text.parse_math": True, "svg.fonttype": "path"}):
        assert to_svg(drawn().figure) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_a_notebook_shows_the_svg():
    figure = drawn()
    assert isinstance(figure, NamedFigure)
    assert figure._repr_svg_() == to_svg(figure.figure)
    assert repr(figure) == "NamedFigure(name='one', title='Title')"


def test_a_page_gets_the_panels_without_the_words_around_them():
    plot = drawn()
    whole, size = to_svg(plot.figure), tuple(plot.figure.get_size_inches())
    with plot.bare() as figure:
        svg = to_svg(figure)
        assert figure.get_figheight() < size[1]
    assert texts_of(svg) == ["a label", "b", *[f"{n / 5:.1f}" for n in range(6)]]
    assert "Caption." in texts_of(whole)
    assert to_svg(plot.figure) == whole
    assert tuple(plot.figure.get_size_inches()) == size


def test_provenance_names_the_commit():
    profile = mac_profile(depths=(0,))
    profile["software"]["edge-revision"] = "0123456789" * 4 + "-dirty"
    assert "edge 0.1.0 (012345678, changed), mlx 0.32.4" in provenance(profile)
    profile["software"]["edge-revision"] = 7
    assert "edge 0.1.0, mlx 0.32.4" in provenance(profile)


@pytest.mark.parametrize(
    ("lengths", "columns"), [([], 1), ([10], 1), ([10] * 6, 6), ([40] * 4, 2), ([200] * 3, 1)]
)
def test_a_legend_has_as_many_columns_as_fit(lengths, columns):
    assert _legend_columns(["x" * length for length in lengths], 8.0) == columns


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e-5, 100, [1e-5, 1e-3, 0.1, 10]),
        (5, 60, [5, 10, 20, 50]),
        (6.4, 9, [6.5, 7.5, 8.5]),
    ],
)
def test_a_logarithmic_axis_has_a_few_round_numbers(low, high, ticks):
    assert log_ticks(low, high) == pytest.approx(ticks)

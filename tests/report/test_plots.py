import copy
import json
import re
from functools import cache

import pytest
from matplotlib.container import BarContainer

from edge.profile.check import check
from edge.profile.published import table11_rows
from edge.profile.reading import read_profile
from edge.report.figure import COLOURS, to_svg
from edge.report.plots import (
    PLOTS,
    depth,
    energy,
    figures,
    latency,
    missing,
    power,
    precision,
    roofline,
    throughput,
)
from edge.report.plots.view import side_by_side, view
from edge.report.values import number
from tests.report.test_figure import texts_of
from tests.support.profiles import (
    ROOT,
    failed_profile,
    failed_row,
    faults,
    hostile_profile,
    linux_profile,
    mac_profile,
    many_rows_profile,
)

ALL = ["throughput", "energy", "precision", "depth", "power", "latency", "roofline"]
MAKERS = (failed_profile, hostile_profile, linux_profile, mac_profile, many_rows_profile)


@cache
def made(maker=mac_profile, **how):
    return maker(**how)


@cache
def drawn(maker=mac_profile, **how):
    """Every plot of it, drawn once for the whole file."""
    return figures(made(maker, **how))


def shallow():
    return copy.deepcopy(made(depths=(0,)))


def absent(profile):
    """Titles of the plots that are said to be missing."""
    return [title for s in missing(profile) for title in s.partition(":")[0].split(", ")]


def words(figure):
    return " ".join(" ".join(texts_of(to_svg(figure.figure))).split())


@pytest.mark.parametrize("maker", MAKERS)
def test_generated_profiles_follow_the_schema(maker):
    assert faults(made(maker)) == []


@pytest.mark.parametrize("maker", [failed_profile, linux_profile, mac_profile])
def test_generated_profiles_hang_together(maker, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(made(maker)))
    assert check([tmp_path], names=()).faults == []


def test_a_profile_with_everything_has_every_plot():
    assert [figure.name for figure in drawn(quality=True)] == ALL
    assert missing(made(quality=True)) == []


@pytest.mark.parametrize("maker", [failed_profile, linux_profile, many_rows_profile])
def test_every_plot_is_drawn_or_its_absence_said(maker):
    assert len(drawn(maker)) + len(absent(made(maker))) == len(PLOTS)


def test_what_is_missing_is_said_with_the_reason():
    said = missing(made(linux_profile))
    assert [s.split(":")[0] for s in said] == [
        f"{energy.TITLE}, {power.TITLE}",
        precision.TITLE,
        "Against depth",
    ]
    assert "there is no meter here" in said[0]
    assert said[1].endswith(": quality was not measured: add --quality.")
    assert "-d 0,4096" in said[2]


def test_plots_do_not_change_the_profile():
    assert drawn(quality=True)
    assert json.dumps(made(quality=True)) == json.dumps(mac_profile(quality=True))


def test_every_figure_carries_n_and_provenance():
    for figure in drawn(quality=True):
        assert "n = " in figure.caption
        text = words(figure)
        assert "Apple M2 Max, macOS 15.5 (24F74), edge 0.1.0, mlx 0.32.4" in text
        assert figure.caption.split(".")[0] in text


def test_bars_are_medians_from_zero_in_the_engines_colour():
    profile = made(linux_profile)
    axes = throughput.draw(profile).figure.axes[0]
    bars = [c.patches[0] for c in axes.containers if isinstance(c, BarContainer)]
    rows = side_by_side(view(profile))
    assert [bar.get_width() for bar in bars] == [r.spread("decode_tok_s").median for r in rows]
    assert {bar.get_x() for bar in bars} == {0}
    assert [to_hex(bar) for bar in bars] == [COLOURS[r.engine] for r in rows]
    dots = [len(c.get_offsets()) for c in axes.collections if len(c.get_offsets()) > 1]
    assert dots == [6] * len(rows)


def to_hex(bar):
    return "#" + "".join(f"{round(255 * part):02X}" for part in bar.get_facecolor()[:3])


def test_mlx_stands_beside_the_gguf_of_the_same_bits():
    order = [row.artefact for row in side_by_side(view(shallow()))]
    assert order == ["mlx-fp16", "gguf-f16", "gguf-q6_k", "gguf-q5_k_m", "mlx-int4"]


def test_published_rates_are_marked_for_stable_code_3b_alone():
    marked = throughput.draw(shallow())
    assert "published (Table 11)" in words(marked)
    x = {line.get_xdata()[0] for line in marked.figure.axes[0].lines if len(line.get_xdata()) == 2}
    assert {row.decode_tok_s for row in table11_rows()} <= x
    assert published_marks(marked) == published_marks(throughput.draw(made())) == 5
    other = shallow()
    other["model"].update(name="stablelm-3b-4e1t")  # the same shape, another model
    assert "published" not in words(throughput.draw(other))


def published_marks(figure):
    """The dark one of each pair of upright lines; nobody published a rate at a depth."""
    lines = [line for line in figure.figure.axes[0].lines if line.get_linewidth() == 2]
    return sum(len(set(line.get_xdata())) == 1 for line in lines)


def test_a_failed_row_says_why_and_has_no_bar():
    profile = shallow()
    profile["rows"][1] = failed_row(profile["rows"][1], "out of memory in round 2")
    figure = throughput.draw(profile)
    bars = [c for c in figure.figure.axes[0].containers if isinstance(c, BarContainer)]
    assert len(bars) == 4
    assert "not measured: out of memory in round 2" in words(figure)
    for plot in (energy, latency, roofline):
        assert "not measured: out of memory in round 2" in words(plot.draw(profile))


def test_all_rows_failed():
    figure = throughput.draw(made(failed_profile))
    text = words(figure)
    assert text.count("not measured: the worker was killed") == 5
    assert "No row has a figure" in text
    assert list(figure.figure.axes[0].get_xticks()) == []


def test_the_front_is_what_nothing_beats_in_both():
    assert energy.front([(10, 5.0), (20, 3.0), (20, 4.0), (5, 1.0), (7, 6.0)]) == [3, 1]
    assert energy.front([(1, 1.0)]) == [0]


def test_quality_stands_beside_the_name_where_it_is_known():
    text = words(energy.draw(made(depths=(0,), quality=True)))
    assert "mlx-int4 KL 0.018 nats" in text
    profile = shallow()
    profile["rows"][1]["quality"] = {"perplexity_ratio": 1.0625}
    profile["rows"][4]["quality"] = {"perplexity": 5.5}
    text = words(energy.draw(profile))
    assert "mlx-int4 perplexity ratio 1.062" in text and "gguf-q6_k perplexity 5.5" in text
    assert "Quality was not measured: add --quality." in energy.draw(shallow()).caption


def test_a_single_point_is_no_front():
    profile = shallow()
    assert "nothing is better in both" in words(energy.draw(profile))
    profile["rows"] = profile["rows"][:1]
    alone = energy.draw(profile)
    assert "nothing is better in both" not in words(alone)
    assert not [line for line in alone.figure.axes[0].lines if line.get_linestyle() == "--"]


def test_an_invalid_row_is_held_against_nothing():
    profile = copy.deepcopy(made(quality=True))
    for row in profile["rows"][1::5]:  # mlx-int4 at both depths
        row.update(verdict="INVALID", reasons=["its logits are wrong"])
    for plot in (energy, depth, precision):
        figure = plot.draw(profile)
        assert re.search("mlx-int4 [^.]* INVALID: its logits are wrong[.]", figure.caption)
        labels = [text.get_text() for text in figure.figure.axes[0].texts]
        assert not [label for label in labels if "mlx-int4" in label]
    for plot in (throughput, roofline):
        drawn = plot.draw(profile).figure
        bars = [c.patches[0] for c in drawn.axes[0].containers if isinstance(c, BarContainer)]
        assert sum(bar.get_hatch() is not None for bar in bars) == 2
        assert "INVALID: no figure to quote" in [t.get_text() for t in drawn.legends[0].texts]
    titles = [axes.get_title(loc="left") for axes in latency.draw(profile).figure.axes]
    assert sum("INVALID" in title for title in titles) == 2


def test_precision_sets_divergence_against_bytes():
    figure = precision.draw(made(quality=True))
    axes = figure.figure.axes[0]
    points = [tuple(c.get_offsets()[0]) for c in axes.collections]
    rows = {row.artefact: row for row in view(made(quality=True)) if not row.depth}
    assert [x for x, _ in points] == [row.bits / 8 for row in rows.values()]
    floor = axes.get_ylim()[0]  # two of them are the reference itself
    assert [y for _, y in points] == [row.quality.kl_mean or floor for row in rows.values()]
    assert axes.get_yscale() == "log" and axes.get_xlim()[0] == 0
    assert "n = 4096 tokens of a sample." in figure.caption and "from mlx-fp16" in figure.caption
    assert "A triangle on the lower edge" in figure.caption
    assert "mlx-int4 0.018 nats, top-1 98.2%" in words(figure)


def test_precision_needs_two_rows_that_lost_something():
    profile = copy.deepcopy(made(depths=(0,), quality=True))
    for row in profile["rows"][2:]:
        row.update(quality=None, reasons=["quality: the corpus was too short"])
    assert "corpus was too short" in precision.draw(profile).caption
    profile["rows"][1].update(quality=None)
    assert precision.draw(profile) is None
    assert "fewer than two rows" in precision.missing(profile)
    profile["rows"][0].update(quality=None, reasons=["quality: the corpus was too short"])
    assert precision.missing(profile) == f"{precision.TITLE}: the corpus was too short."


def test_labels_cover_neither_points_nor_each_other():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = next(f.figure for f in drawn(many_rows_profile) if f.name == "energy")
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    boxes = [t.get_window_extent() for t in axes.texts if t.get_text()]
    overlaps = sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert len(boxes) == 18
    assert overlaps == 0


def test_a_wild_band_does_not_press_the_lines_flat():
    profile = copy.deepcopy(made())
    profile["rows"][0]["decode_tok_s"]["ci95"] = [-1e6, 1e6]
    axes = depth.draw(profile).figure.axes[0]
    assert axes.get_ylim()[1] < 2 * max(line.get_ydata().max() for line in axes.lines)


def test_depth_without_power_says_so_in_its_panel():
    figure = figures(made(power=False))[1]
    assert figure.name == "depth"
    shown = [text.get_text() for text in figure.figure.axes[2].texts]
    assert [" ".join(text.split()) for text in shown] == ["not measured: there is no meter here"]


def test_power_shades_the_windows_and_shows_the_heat():
    figure = power.draw(shallow())
    assert len(figure.figure.axes) == 10
    text = words(figure)
    assert "prefill window" in text and "decode window" in text
    assert "nominal" in text and "moderate" in text
    watts = figure.figure.axes[0]
    assert watts.get_ylim()[1] == pytest.approx(1.08 * (1.6 * 25 + 2), rel=0.02)


def test_levels_of_the_first_profiles_have_apples_spelling():
    assert power._level_colour("Nominal") == power._level_colour("nominal") != power.ERROR


def test_windows_are_in_the_legend_only_where_there_are_any():
    assert "window" not in words(power.draw(made(failed_profile)))


def test_of_many_rows_with_samples_those_with_figures_are_shown_first():
    profile = copy.deepcopy(made())
    for row in profile["rows"][:4]:
        row.update(power_w=None)
    figure = power.draw(profile)
    titles = [axes.get_title(loc="left").partition(",")[0] for axes in figure.figure.axes[::2]]
    assert titles[0].startswith("gguf-q6_k") and len(titles) == 6
    assert "6 of 10 rows" in figure.caption


def test_samples_that_were_not_kept_or_are_broken_are_said_to_be_missing():
    profile = shallow()
    for row in profile["rows"]:
        for process in row["processes"]:
            process["power_series"]["end_ns"].pop()
    assert power.draw(profile) is None
    assert "not kept the power samples" in power.missing(profile)


def test_token_times_come_from_old_and_new_profiles():
    trial = {"warmup": False, "token_ns": [0, 2_000_000, 5_000_000]}
    old, new = shallow(), shallow()
    old["rows"][0]["trials"] = [trial]
    new["rows"][0]["trials"] = [{"warmup": False, "token_us": [[3000], [2000, 0]]}]
    assert latency.token_times_ms(view(old)[0]) == [2.0, 3.0]
    assert latency.token_times_ms(view(new)[0]) == [2.0, 3.0]


def test_percentiles_are_those_of_the_profile():
    profile = shallow()
    profile["rows"] = profile["rows"][:1]
    profile["rows"][0]["trials"] = [{"warmup": False, "token_us": [[1000, 2000, 3000, 10000]]}]
    assert "p50 2.50 ms" in words(latency.draw(profile))


def test_a_scale_of_times_has_labels_enough_however_narrow():
    profile = shallow()
    profile["rows"] = profile["rows"][:1]
    axes = latency.draw(profile).figure.axes[0]
    low, high = axes.get_xlim()
    assert high / low < 5
    assert 3 <= sum(low <= tick <= high for tick in axes.get_xticks()) <= 6
    text = words(latency.draw(profile))
    assert re.search(r"p50 \d\d\.\d ms", text)


def test_more_than_the_peak_is_an_error():
    profile = shallow()
    profile["rows"][0]["bandwidth_fraction"] = 1.25
    text = words(roofline.draw(profile))
    assert "error:" in text and "125% of the peak" in text
    assert "the measurement or the bandwidth is wrong" in text
    assert "error" not in words(roofline.draw(shallow()))


def test_a_wild_interval_does_not_press_the_bars_flat():
    profile = shallow()
    profile["rows"][0]["decode_tok_s"]["ci95"] = [-1e6, 1e6]
    figure = throughput.draw(profile)
    assert figure.figure.axes[0].get_xlim()[1] < 400
    assert "goes on beyond it" in figure.caption


def test_hostile_strings_are_text_in_every_plot():
    plots = drawn(hostile_profile)
    assert [figure.name for figure in plots] == [name for name in ALL if name != "depth"]
    for figure in plots:
        svg = to_svg(figure.figure)
        assert "<script" not in svg
        assert texts_of(svg)  # it is well-formed
    assert "$\\frac{1}{0}$ a_b^c {x" in words(plots[0])


@pytest.mark.parametrize("value", [None, True, "x", [], {}, 10**400, 1e300, float("nan"), -1e16])
def test_what_is_no_number_counts_as_not_measured(value):
    assert number(value) is None
    profile = shallow()
    row = profile["rows"][0]
    row["decode_tok_s"] = {"median": value, "mean": value, "sd": value, "n": value}
    row.update(bytes_per_token=value, bandwidth_fraction=value, bits_per_weight=value)
    row.update(peak_memory_bytes=value, quality=value, power=value, processes=value)
    row["workload"] = {"prompt": value, "generate": value, "depth": value}
    row["trials"] = [{"warmup": False, "decode_tok_s": value, "token_us": value}]
    for plot in PLOTS:
        assert (plot.draw(profile) is None) == (plot.missing(profile) is not None)


def test_no_rows():
    profile = {**shallow(), "rows": []}
    assert figures(profile) == []
    assert len(absent(profile)) == len(PLOTS)


def test_measured_profiles_of_the_repository_have_plots():
    paths = sorted((ROOT / "profiles" / "measured").glob("*.json"))
    assert paths
    for path in paths:
        assert "throughput" in [figure.name for figure in figures(read_profile(path))]

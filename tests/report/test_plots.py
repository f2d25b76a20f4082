import re
from functools import cache

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer

from edge.profile.profile import Workload, read
from edge.report.figure import COLOURS, NamedFigure
from edge.report.plots import (
    batch,
    depth,
    draw,
    energy,
    latency,
    power,
    precision,
    roofline,
    throughput,
)
from edge.report.plots.latency import token_times_ms
from edge.report.plots.points import front
from edge.report.published import table11_rows
from edge.report.table import side_by_side
from tests.report.test_figure import texts_of
from tests.support.profiles import (
    ROOT,
    failed_profile,
    failed_row,
    linux_profile,
    make_profile,
    typed,
)
from tools.draw_readme_plot import PLOT, PROFILE
from tools.draw_readme_plot import drawn as readme_plot

ALL = ["throughput", "energy", "precision", "depth", "power", "latency", "roofline"]


def two_depths(**how):
    return make_profile(depths=(0, 4096), **how)


@cache
def drawn(maker=two_depths, **how):
    """Every plot of a profile, drawn once for the whole file."""
    return draw(typed(maker(**how)))


def words(figure):
    return " ".join(" ".join(texts_of(figure.svg())).split())


def plotted(plot, data):
    found = plot(typed(data))
    assert isinstance(found, NamedFigure), found
    return found


def bars_of(figure):
    return [c.patches[0] for c in figure.figure.axes[0].containers if isinstance(c, BarContainer)]


def test_complete_profiles_have_every_plot():
    measured = (ROOT / "profiles" / "measured").glob("*.json")
    assert all(draw(read(path)).figures[0].name == "throughput" for path in measured)
    found = drawn(quality=True)
    assert [figure.name for figure in found.figures] == ALL
    assert found.missing == []
    for figure in found.figures:
        assert "n = " in figure.caption
        text = words(figure)
        assert "Apple M2 Max, macOS 15.5 (24F74), edge 0.1.0, mlx 0.32.4" in text
        assert figure.caption.split(".")[0] in text


def test_missing_plots_have_a_reason():
    missing = drawn(linux_profile).missing
    assert missing[0] == "Energy against speed, Power over time: there is no meter here."
    assert missing[1] == "What a precision costs: quality was not measured: add --quality."
    assert missing[2].startswith("Against depth") and "-d 0,4096" in missing[2]
    figure = plotted(depth, two_depths(power=False))
    assert "not measured: there is no meter here" in words(figure)
    empty = draw(typed({**make_profile(), "rows": []}))
    assert (empty.figures, len(empty.missing)) == ([], 3)


def test_a_batch_is_drawn_with_its_rate_latency_and_energy():
    data = make_profile(artefacts=("mlx-int4", "gguf-q6_k"), batches=(1, 8, 2), depths=(0, 64))
    rows = {(r.artefact, r.workload): r for r in typed(data).rows}
    figure = plotted(batch, data)
    assert [found.name for found in draw(typed(data)).figures].count("batch") == 1
    rates, latencies, joules = (
        [(line.get_xdata(), line.get_ydata()) for line in axes.lines] for axes in figure.figure.axes
    )
    assert len(rates) == len(latencies) == len(joules) == 4
    of_line = [rows["gguf-q6_k", Workload(512, 128, 64, batch=n)] for n in (1, 2, 8)]
    wanted = zip(
        (rates, latencies, joules),
        (
            [row.decode_tok_s.median for row in of_line],
            [row.token_latency_ms["p50"] for row in of_line],
            [row.joules_per_token.median for row in of_line],
        ),
        strict=True,
    )
    for drawn_lines, values in wanted:
        x, y = drawn_lines[3]
        assert [*x] == [1, 2, 8] and [*y] == pytest.approx(values)
    assert "gguf-q6_k on llama.cpp, pp512, tg128 @ d64" in words(figure)
    assert "pp512, tg128; pp512, tg128 @ d64 in each of so many sequences." in figure.caption
    assert batch(typed(make_profile())) == (
        "nothing was measured in more than one batch (-npl 1,2,4,8)"
    )
    no_meter = make_profile(artefacts=("mlx-int4",), batches=(1, 8), power=False)
    assert "not measured: there is no meter here" in words(plotted(batch, no_meter))


def test_published_rates_are_not_those_of_batches():
    data = make_profile(batches=(8,))
    assert "published" not in words(plotted(throughput, data))
    assert all(row.measured(typed(data)) is None for row in table11_rows())


def test_bars_are_medians_from_zero_in_the_engines_colour():
    figure = plotted(throughput, linux_profile())
    bars, rows = bars_of(figure), side_by_side(typed(linux_profile()).rows)
    assert [bar.get_width() for bar in bars] == [row.decode_tok_s.median for row in rows]
    assert {bar.get_x() for bar in bars} == {0}
    colours = [to_hex(bar.get_facecolor()).upper() for bar in bars]
    assert colours == [COLOURS[row.engine] for row in rows]
    assert [row.artefact for row in rows] == [  # MLX beside the GGUF of the same bits
        *("mlx-fp16", "gguf-f16", "gguf-q6_k", "gguf-q5_k_m", "mlx-int4")
    ]
    offsets = [len(c.get_offsets()) for c in figure.figure.axes[0].collections]
    assert [n for n in offsets if n > 1] == [6] * len(rows)


def test_published_rates_are_marked_only_for_stable_code_3b():
    marked = plotted(throughput, make_profile())
    assert "published (Table 11)" in words(marked)
    assert published_marks(marked) == {row.decode_tok_s for row in table11_rows()}
    other = make_profile()
    other["model"].update(name="stablelm-3b-4e1t")  # the same shape, another model
    assert "published" not in words(plotted(throughput, other))


def published_marks(figure):
    """Places of the dark one of each pair of upright lines."""
    lines = [line for line in figure.figure.axes[0].lines if line.get_linewidth() == 2]
    assert len(lines) == 5
    return {line.get_xdata()[0] for line in lines}


def test_failed_rows_have_a_reason_instead_of_a_bar():
    data = make_profile()
    data["rows"][1] = failed_row(data["rows"][1], "out of memory in round 2")
    assert len(bars_of(plotted(throughput, data))) == 4
    for plot in (throughput, energy, latency, roofline):
        assert "not measured: out of memory in round 2" in words(plotted(plot, data))
    figure = drawn(failed_profile).figures[0]
    assert words(figure).count("not measured: the worker was killed") == 5


def test_the_pareto_front_is_what_nothing_beats_in_both():
    assert front([(10, 5.0), (20, 3.0), (20, 4.0), (5, 1.0), (7, 6.0)]) == [3, 1]
    assert "nothing is better in both" in words(plotted(energy, make_profile()))


def test_invalid_rows_are_compared_with_nothing():
    data = two_depths(quality=True)
    for row in data["rows"][1::5]:  # mlx-int4 at both depths
        row.update(verdict="INVALID", reasons=["its logits are wrong"])
    for plot in (energy, depth, precision):
        figure = plotted(plot, data)
        assert re.search("mlx-int4 [^.]* INVALID: its logits are wrong[.]", figure.caption)
        labels = [text.get_text() for text in figure.figure.axes[0].texts]
        assert not [label for label in labels if "mlx-int4" in label]
    for plot in (throughput, roofline):
        figure = plotted(plot, data)
        assert sum(bar.get_hatch() is not None for bar in bars_of(figure)) == 2
        assert any("INVALID" in text.get_text() for text in figure.figure.legends[0].texts)
    titles = [axes.get_title(loc="left") for axes in plotted(latency, data).figure.axes]
    assert sum("INVALID" in title for title in titles) == 2


def test_precision_is_divergence_against_bytes():
    data = make_profile(quality=True)
    figure, rows = plotted(precision, data), typed(data).rows
    axes = figure.figure.axes[0]
    points = [tuple(c.get_offsets()[0]) for c in axes.collections]
    assert [x for x, _ in points] == [row.bits_per_weight / 8 for row in rows]
    floor = axes.get_ylim()[0]  # two of them are the reference itself
    assert [y for _, y in points] == [row.quality.kl_mean or floor for row in rows]
    assert axes.get_yscale() == "log" and axes.get_xlim()[0] == 0
    assert "from mlx-fp16, over n = 4096 tokens of a sample." in figure.caption
    assert "A triangle on the lower edge" in figure.caption
    assert "mlx-int4 0.018 nats, top-1 98.2%" in words(figure)
    for row in data["rows"]:
        row.update(quality=None, reasons=["quality: the corpus was too short"])
    assert precision(typed(data)) == "the corpus was too short"


def test_labels_do_not_overlap():
    data = make_profile()
    sets = [make_profile(seed=seed)["rows"] for seed in range(4)]
    data["rows"] = [
        {**r, "artefact": f"{r['artefact']}-{n}"} for n, s in enumerate(sets) for r in s
    ]
    figure = plotted(energy, data).figure
    FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()
    notes = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [note.get_bbox_patch().get_window_extent(renderer) for note in notes]
    assert len(boxes) == 20
    assert sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]) == 0


def test_power_has_windows_thermal_levels_and_at_most_six_rows():
    data = make_profile()
    data["rows"][0]["processes"][0]["power_series"]["thermal"][0]["level"] = "Nominal"  # older
    figure = plotted(power, data)
    text = words(figure)
    for shown in ("prefill window", "decode window", "Nominal", "nominal", "moderate"):
        assert shown in text
    assert figure.figure.axes[0].get_ylim()[1] == pytest.approx(1.08 * (1.6 * 25 + 2), rel=0.02)
    assert "window" not in words(plotted(power, failed_profile()))
    data = two_depths()
    for row in data["rows"][:4]:
        row.update(power_w=None)
    assert "Shown: 6 of 10 rows" in plotted(power, data).caption
    for row in data["rows"]:
        for process in row["processes"]:
            process["power_series"]["end_ns"].pop()
    assert power(typed(data)) == "the profile does not contain power samples"


def test_token_times_of_old_and_new_profiles():
    data = make_profile()
    first, second = data["rows"][:2]
    first["trials"] = [{"warmup": False, "token_ns": [0, 2_000_000, 5_000_000]}]
    second["trials"] = [{"warmup": False, "token_us": [[3000], [2000, 0]]}]
    rows = typed(data).rows
    assert token_times_ms(rows[0]) == token_times_ms(rows[1]) == [2.0, 3.0]


@pytest.mark.parametrize(
    ("plot", "shown"),
    [(throughput, "30 of 40"), (roofline, "30 of 40"), (latency, "12 of 40"), (energy, "30 of 39")],
)
def test_of_many_rows_as_many_as_fit_are_shown(plot, shown):
    rows = make_profile(generate=4, processes=1, samples=0)["rows"]
    many = make_profile(artefacts=())
    many["rows"] = [{**r, "artefact": f"{r['artefact']}-{n}"} for n in range(8) for r in rows]
    many["rows"][0]["decode_tok_s"] = None
    many["rows"][0]["reasons"] = ["no rate"]
    assert f"Shown: {shown} rows; the table has all." in plotted(plot, many).caption


def test_a_rate_above_the_peak_is_an_error():
    data = make_profile()
    data["rows"][0]["bandwidth_fraction"] = 1.25
    text = words(plotted(roofline, data))
    assert "error:" in text and "125% of the peak" in text
    assert "measurement or bandwidth is wrong" in text
    assert "error" not in words(plotted(roofline, make_profile()))


def coordinates(svg):
    tags = re.findall(r'\b(?:d|x|y|points|transform)="([^"]*)"', svg)
    return [float(text) for tag in tags for text in re.findall(r"-?\d+(?:\.\d+)?", tag)]


def test_the_plot_in_the_readme_is_that_of_the_measured_profile():
    """If it is not: python tools/draw_readme_plot.py."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "](docs/throughput.svg)" in readme and f"](profiles/measured/{PROFILE.name})" in readme
    committed, fresh = PLOT.read_text(encoding="utf-8"), readme_plot()
    assert texts_of(committed) == texts_of(fresh)
    # Versions of matplotlib round differently.
    assert coordinates(committed) == pytest.approx(coordinates(fresh), abs=0.5)

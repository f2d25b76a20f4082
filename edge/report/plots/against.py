"""Speed, memory, latency and energy against depth and against batch."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from msgspec.structs import replace

from edge.profile.profile import Profile, Quantity, Row, Workload
from edge.report import figure as fig
from edge.report.plots.rows import Spread, absences, counts, first, spread, spread_meaning
from edge.text import plain

# Artefacts of one engine have the same colour and different lines and markers.
LOOKS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ("-", "v"), ("--", "X"))
Key = tuple[str, str, str]
MOST_CURVES = 12


@dataclass(frozen=True)
class Against:
    """A plot of a few figures against one number of the workload.

    `panels` are labels by the figures' names, `number` reads the number, `test` names what the
    rows of a line have in common; `none`, `where` and `remark` are for the caption. With `is_log`
    equal factors have equal distances.
    """

    name: str
    title: str
    x_label: str
    panels: Mapping[str, str]
    number: Callable[[Workload], int]
    test: Callable[[Workload], str]
    none: str
    where: str
    remark: str
    is_log: bool = False


DEPTH = Against(
    name="depth",
    title="Against depth",
    x_label="depth (tokens)",
    panels={
        "decode_tok_s": "decode throughput (tok/s)",
        "peak_memory_bytes": "peak memory (GB)",
        "joules_per_token": "energy (J/token)",
    },
    number=lambda workload: workload.depth,
    test=lambda workload: workload.test,
    none="nothing was measured at more than one depth (-d 0,4096, or --suite depth)",
    where="after so many tokens in the cache",
    remark="Memory is the peak of all trials.",
)
BATCH = Against(
    name="batch",
    title="Against batch",
    x_label="sequences at once",
    panels={
        "decode_tok_s": "decode, all together (tok/s)",
        "token_latency_ms": "time between tokens (ms)",
        "joules_per_token": "energy (J/token)",
    },
    number=lambda workload: workload.batch,
    test=lambda workload: str(replace(workload, batch=1)),
    none="nothing was measured in more than one batch (-npl 1,2,4,8)",
    where="in each of so many sequences",
    remark="Time between the tokens of a sequence: p50 of all trials.",
    is_log=True,
)


def depth(profile: Profile) -> fig.NamedFigure | str:
    """Speed, memory and energy against depth, a line per artefact and engine."""
    return _drawn(DEPTH, profile)


def batch(profile: Profile) -> fig.NamedFigure | str:
    """Speed, latency and energy against batch, a line per artefact and engine."""
    return _drawn(BATCH, profile)


def _drawn(plot: Against, profile: Profile) -> fig.NamedFigure | str:
    every_series = _series(plot, profile.rows)
    if not every_series:
        return plot.none
    kept, others = first([*every_series.items()], MOST_CURVES)
    series = dict(kept)
    looks = _looks(series)
    tests = list(dict.fromkeys(test for _, _, test in series))
    with fig.style():
        figure = fig.new_figure(3.2)
        panels = figure.subplots(1, len(plot.panels))
        for axes, (name, label) in zip(panels, plot.panels.items(), strict=True):
            axes.set_title(label)
            values = {key: _values(plot, rows, name) for key, rows in series.items()}
            if any(values.values()):
                _draw_lines(plot, axes, series, values, looks)
            else:
                why = next(iter(series.values()))[0].why_not(name, "decode_tok_s")
                _draw_missing(axes, why)
        handles = [
            Line2D([], [], label=_label(key, len(tests) > 1), **look) for key, look in looks.items()
        ]
        every = [row for rows in series.values() for row in rows]
        shown = [row for row in every if row.counts and row.decode_tok_s is not None]
        rates = [found for row in every if (found := spread(row.decode_tok_s))]
        caption = [
            f"{'; '.join(tests)} {plot.where}.",
            f"Medians of n = {counts(rate.n for rate in rates)} trials, band: "
            f"{spread_meaning(rates)}.",
            plot.remark,
            *absences(every, shown, profile.rows, "decode_tok_s"),
            *others,
        ]
        return fig.finish(figure, plot.name, plot.title, profile, handles, *caption)


def _series(plot: Against, rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """Rows that differ in the plot's number only, where there are two or more, by that number."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault((row.artefact, row.engine, plot.test(row.workload)), []).append(row)
    return {
        key: sorted(of_key, key=lambda row: plot.number(row.workload))
        for key, of_key in found.items()
        if len({plot.number(row.workload) for row in of_key}) > 1
    }


def _label(key: Key, with_test: bool) -> str:
    artefact, engine, test = key
    return plain(f"{artefact} on {engine}" + (f", {test}" if with_test else ""), 60)


def _values(plot: Against, rows: Sequence[Row], name: str) -> list[tuple[int, Spread]]:
    """A figure of every row that has it, by the plot's number; bytes as GB, p50 of percentiles."""
    found = []
    for row in rows:
        value = getattr(row, name)
        if isinstance(value, dict):
            value = value.get("p50")
        elif isinstance(value, int):
            value = value / 1e9
        if isinstance(value, float):
            value = Quantity(median=value, mean=value, n=1)
        if row.counts and (shown := spread(value)):
            found.append((plot.number(row.workload), shown))
    return found


def _looks(series: Mapping[Key, object]) -> dict[Key, dict[str, Any]]:
    engines = [engine for _, engine, _ in series]
    looks = {}
    for place, key in enumerate(series):
        line, marker = LOOKS[engines[:place].count(key[1]) % len(LOOKS)]
        colour = fig.colour_of(key[1])
        looks[key] = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
    return looks


def _draw_lines(
    plot: Against,
    axes: Axes,
    series: Mapping[Key, Sequence[Row]],
    values: Mapping[Key, Sequence[tuple[int, Spread]]],
    looks: Mapping[Key, dict[str, Any]],
) -> None:
    for key, points in values.items():
        numbers = [number for number, _ in points]
        axes.plot(numbers, [found.median for _, found in points], **looks[key])
        if len(points) == len(series[key]):  # no band across a gap
            lows, highs = [s.low for _, s in points], [s.high for _, s in points]
            axes.fill_between(numbers, lows, highs, color=looks[key]["color"], alpha=0.15, lw=0)
    every = sorted({plot.number(row.workload) for rows in series.values() for row in rows})
    if plot.is_log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(every, [f"{number}" for number in every])
    else:
        shown = _apart(every)
        axes.set_xticks(shown, [f"{number}" for number in shown])
        axes.set_xlim(-0.06 * every[-1], 1.06 * every[-1])
    most = max(found.median for points in values.values() for _, found in points)
    axes.set_ylim(0, min(axes.get_ylim()[1], fig.MOST_OF_AXIS * most or 1.0))
    axes.set_xlabel(plot.x_label)
    axes.grid()


def _draw_missing(axes: Axes, sentence: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    text = textwrap.fill(f"not measured: {plain(sentence, 200)}", 36)
    look: dict[str, Any] = {"ha": "center", "va": "center", "color": fig.DARK_GREY, "fontsize": 8}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, **look)


def _apart(numbers: list[int]) -> list[int]:
    """Numbers whose labels do not overlap, including the last."""
    kept = [numbers[-1]]
    for number in reversed(numbers[:-1]):
        if kept[-1] - number >= 0.2 * numbers[-1]:
            kept.append(number)
    return kept[::-1]

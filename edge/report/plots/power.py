"""Power over time: prefill and decode shaded, the thermal level beneath."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from edge.device.state import NOMINAL
from edge.profile.profile import Profile, Row
from edge.profile.trial import PowerSeries, Process
from edge.report import figure as fig
from edge.report.plots.rows import NO_ROWS, first, heading
from edge.report.table import side_by_side
from edge.text import plain

MOST_ROWS = 6
# Heights of a row with its strip, and of the time axis.
ROW_IN, TIME_IN = 1.45, 0.4
# More steps than pixels only make the file larger.
MOST_STEPS = 300
RAILS = {"CPU": fig.BLUE, "GPU": fig.ORANGE, "ANE": fig.GREEN, "DRAM": fig.PURPLE}
WINDOWS = {"prefill": fig.SKY, "decode": fig.YELLOW}
LEVELS = {NOMINAL: fig.GREEN, "light": fig.YELLOW, "moderate": fig.ORANGE}


@dataclass(frozen=True)
class Sampled:
    """A row's first process with usable samples."""

    row: Row
    process: Process
    series: PowerSeries

    def seconds(self, stamp_ns: int) -> float:
        return (stamp_ns - self.series.begin_ns[0]) / 1e9

    @property
    def end_s(self) -> float:
        return self.seconds(self.series.end_ns[-1])

    @property
    def rails(self) -> dict[str, Sequence[int]]:
        """Milliwatts of rails that are not 0 throughout, the known ones first."""
        used = {rail: mw for rail, mw in self.series.milliwatts.items() if any(mw)}
        return {rail: used[rail] for rail in [*RAILS, *sorted(used)] if rail in used}

    def windows_s(self, kind: str) -> list[tuple[float, float]]:
        trials = [t for t in self.row.trials if t.round == self.process.round]
        passes = [trial.prefills if kind == "prefill" else trial.passes for trial in trials]
        found = [(self.seconds(p[0][0]), self.seconds(p[-1][1])) for p in passes if p]
        return [(begin, end) for begin, end in found if begin < self.end_s and end > 0]


def power(profile: Profile) -> fig.NamedFigure | str:
    """The first measured process of up to six rows, those with a figure first."""
    rows = side_by_side(profile.rows)
    known = [sampled for row in rows if (sampled := _sampled(row))]
    if not known:
        if any(row.power_w for row in rows):
            return "the profile does not contain power samples"
        return rows[0].why_not("power_w") if rows else NO_ROWS
    known.sort(key=lambda found: found.row.power_w is None)
    shown, others = first(known, MOST_ROWS)
    end_s = max(found.end_s for found in shown)
    top_mw = max(max(map(sum, zip(*s.series.milliwatts.values(), strict=True))) for s in shown)
    with fig.style():
        figure = fig.new_figure(ROW_IN * len(shown) + TIME_IN)
        panels = _panels(figure, len(shown))
        for found, (panel, strip) in zip(shown, panels, strict=True):
            _draw_power(panel, found)
            panel.set_title(_title(found, profile.rows), fontsize=8)
            _draw_thermal(strip, found)
            panel.set(xlim=(0, end_s), ylim=(0, 1.08e-3 * top_mw or 1.0))
            strip.set_xlim(0, end_s)
        panels[-1][1].tick_params(bottom=True, labelbottom=True)
        panels[-1][1].set_xlabel("time since the first sample of the process (s)")
        caption = [*_caption(shown), *others]
        return fig.finish(figure, "power", "Power over time", profile, _handles(shown), *caption)


def _panels(figure: Figure, count: int) -> list[tuple[Axes, Axes]]:
    ratios = [*[ROW_IN] * (count - 1), ROW_IN + TIME_IN]
    grid = figure.add_gridspec(count, 1, height_ratios=ratios)
    pairs = (grid[n, 0].subgridspec(2, 1, height_ratios=[6, 1], hspace=0.02) for n in range(count))
    return [(figure.add_subplot(pair[0]), figure.add_subplot(pair[1])) for pair in pairs]


def _sampled(row: Row) -> Sampled | None:
    for process in row.processes:
        if process.power_series is not None and _is_usable(process.power_series):
            return Sampled(row, process, process.power_series)
    return None


def _is_usable(series: PowerSeries) -> bool:
    """All lists have the same length, and time does not run backwards."""
    begins, ends = series.begin_ns, series.end_ns
    lengths = {len(ends), *map(len, series.milliwatts.values())}
    if not begins or not series.milliwatts or lengths != {len(begins)}:
        return False
    return begins == sorted(begins) and all(b <= e for b, e in zip(begins, ends, strict=True))


def _title(found: Sampled, rows: Sequence[Row]) -> str:
    label = textwrap.shorten(heading(found.row, rows), 70, placeholder=" …")
    return f"{label}, round {found.process.round + 1}"


def _draw_power(axes: Axes, found: Sampled) -> None:
    for kind, colour in WINDOWS.items():
        for begin_s, end_s in found.windows_s(kind):
            axes.axvspan(begin_s, end_s, color=colour, alpha=0.35, linewidth=0)
    count = len(found.series.begin_ns)
    places = list(range(0, count, max(1, -(-count // MOST_STEPS))))
    edges = [found.seconds(found.series.begin_ns[i]) for i in places] + [found.end_s]
    top, stack = [0.0] * len(places), []
    for rail, milliwatts in found.rails.items():
        means = [sum(milliwatts[a:b]) / (b - a) / 1e3 for a, b in pairwise([*places, count])]
        top = [below + mean for below, mean in zip(top, means, strict=True)]
        stack.append((top, RAILS.get(rail, fig.GREY)))
    for heights, colour in reversed(stack):  # each covers the lower part of the one above
        axes.stairs(heights, edges, fill=True, color=colour, linewidth=0)
    axes.set_ylabel("power (W)", fontsize=8)
    axes.grid(axis="y")
    axes.tick_params(bottom=False, labelbottom=False)


def _draw_thermal(axes: Axes, found: Sampled) -> None:
    """A strip in the level's colour, with its name where it fits."""
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False)
    axes.set_ylabel("heat", fontsize=7, rotation=0, ha="right", va="center")
    axes.set_ylim(0, 1)
    changes = [(max(found.seconds(c.begin_ns), 0.0), c.level) for c in found.series.thermal]
    if not changes:
        axes.text(
            0, 0.5, " thermal level not measured", va="center", fontsize=7, color=fig.DARK_GREY
        )
    for (begin_s, level), (until_s, _) in pairwise([*sorted(changes), (found.end_s, "")]):
        # Other levels are drawn as errors; the oldest profiles have "Nominal".
        colour = LEVELS.get(level.lower(), fig.ERROR)
        axes.broken_barh([(begin_s, until_s - begin_s)], (0, 1), color=colour)
        if until_s - begin_s > 0.09 * found.end_s:
            axes.text(begin_s, 0.45, f" {plain(level, 16)}", va="center", fontsize=7)


def _handles(shown: Sequence[Sampled]) -> list[Patch]:
    rails = dict.fromkeys(rail for found in shown for rail in found.rails)
    handles = [Patch(color=RAILS.get(rail, fig.GREY), label=plain(rail, 20)) for rail in rails]
    for kind, colour in WINDOWS.items():
        if any(found.windows_s(kind) for found in shown):
            handles.append(Patch(color=colour, alpha=0.35, label=f"{kind} window"))
    return handles


def _caption(shown: Sequence[Sampled]) -> list[str]:
    samples = sorted(len(found.series.begin_ns) for found in shown)
    n = f"{samples[0]}" if samples[0] == samples[-1] else f"{samples[0]} to {samples[-1]}"
    sentences = [f"Mean power of each sample, rails stacked; n = {n} samples of one process a row."]
    source = shown[0].row.power
    if source is not None and source.boundary:
        sentences.append(f"Boundary: {plain(source.boundary, 120)}.")
    return sentences

"""Shared by the plots: spread, order and labels of rows, reasons for gaps, markers, log scales."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from edge.profile.profile import OWN_ENGINES, Quantity, Row
from edge.report import figure as fig
from edge.report.table import listed, row_label
from edge.text import plain

Point = tuple[float, float]
SPREADS = {
    "ci95": "95 % interval of the mean over processes",
    "sd": "± 1 standard deviation",
    "": "no spread: one trial",
}
NO_ROWS = "the profile has no rows"
# Right, left, above, below, then the corners.
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
ALIGNMENT: dict[int, Literal["left", "center", "right"]] = {1: "left", 0: "center", -1: "right"}
DISTANCES_PT = (10, 18, 28, 40, 54, 70, 90)
POINT_PIXELS = 9


@dataclass(frozen=True)
class Spread:
    """A quantity's median and an interval around it, of a kind of SPREADS."""

    median: float
    low: float
    high: float
    n: int
    kind: str

    @property
    def errors(self) -> list[list[float]]:
        """Lengths of an error bar; the mean's interval need not contain the median."""
        low = self.median - max(min(self.low, self.median), 0.0)
        return [[low], [max(self.high - self.median, 0.0)]]


def spread(quantity: Quantity | None) -> Spread | None:
    """The interval of the mean, else one standard deviation, else the median alone."""
    if quantity is None:
        return None
    median, mean, n = quantity.median, quantity.mean, quantity.n
    if quantity.ci95 is not None:
        return Spread(median, *quantity.ci95, n, "ci95")
    if quantity.sd is not None:
        return Spread(median, mean - quantity.sd, mean + quantity.sd, n, "sd")
    return Spread(median, median, median, n, "")


def spread_kinds(spreads: Iterable[Spread]) -> str:
    """Description of the kinds of intervals that occur."""
    found = {spread.kind for spread in spreads}
    return " or, without one, ".join(text for kind, text in SPREADS.items() if kind in found)


def counts(numbers: Iterable[int]) -> str:
    """The distinct numbers, such as "3 or 5"."""
    return " or ".join(map(str, sorted(set(numbers)))) or "0"


def side_by_side(rows: Sequence[Row]) -> list[Row]:
    """Rows by workload, then by falling bits, MLX before the GGUF with as many bits."""
    tests = list(dict.fromkeys(str(row.workload) for row in rows))
    frameworks = [*OWN_ENGINES]

    def place(row: Row) -> tuple[int, int, int]:
        known = row.framework in OWN_ENGINES
        framework = frameworks.index(row.framework) if known else len(frameworks)
        return tests.index(str(row.workload)), -round(row.bits_per_weight or 0), framework

    return sorted(rows, key=place)


def heading(row: Row, rows: Sequence[Row]) -> str:
    """A row's label, with its verdict if that is not VALID."""
    label = row_label(row, rows)
    return label if row.verdict == "VALID" else f"{label} {row.verdict}"


def main_workload(rows: Sequence[Row], name: str) -> list[Row]:
    """Rows of the workload with the most values of a quantity."""
    tests = [str(row.workload) for row in rows if getattr(row, name) is not None]
    main = max(dict.fromkeys(tests), key=tests.count, default=None)
    return [row for row in rows if str(row.workload) == main]


def absences(
    rows: Sequence[Row], shown: Sequence[Row], every: Sequence[Row], about: str
) -> list[str]:
    """Sentences that say why a plot does not show some of its rows."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        if any(row is other for other in shown):
            continue
        why = f"not measured: {row.why_not(about)}"
        if not row.counts and row.decode_tok_s is not None:
            why = f"INVALID: {row.why_not()}"
        labels.setdefault(plain(why, 320), []).append(row_label(row, every))
    return [f"{listed(found)} {why}." for why, found in labels.items()]


def draw_point(axes: Axes, row: Row, place: Point, marker: str | None = None) -> None:
    """A marker in the engine's colour: a circle for MLX, a square for GGUF."""
    axes.scatter(
        *place,
        s=70,
        marker=marker or ("s" if row.framework == "GGUF" else "o"),
        color=fig.colour_of(row.engine),
        edgecolor=fig.INK,
        linewidth=0.6,
        zorder=3,
        clip_on=False,
    )


def place_labels(
    figure: Figure, axes: Axes, points: Sequence[Point], texts: Sequence[str], lines: Sequence[Any]
) -> None:
    """Write each text at the first free place near its point; the axes must have their limits.

    `lines` are the ends of vertical or horizontal lines that no text should cover.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    frame = axes.get_window_extent()
    pixels = [axes.transData.transform(place) for place in points]
    taken = [Bbox.from_bounds(x - POINT_PIXELS, y - POINT_PIXELS, 18, 18) for x, y in pixels]
    taken += [Bbox(axes.transData.transform(ends)).padded(1.5) for ends in lines]
    look: dict[str, Any] = {
        "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5},
        "arrowprops": {"arrowstyle": "-", "color": fig.DARK_GREY, "linewidth": 0.6, "shrinkB": 5},
    }
    for point, text in zip(points, texts, strict=True):
        note = axes.annotate(
            text, point, (0, 0), textcoords="offset points", fontsize=8, va="center", **look
        )
        for distance, (dx, dy) in product(DISTANCES_PT, SIDES):
            note.set_position((distance * dx, distance * dy))
            note.set_horizontalalignment(ALIGNMENT[dx])
            note.update_positions(renderer)
            box = Text.get_window_extent(note).padded(1.5)  # without its line
            inside = frame.containsx(box.x0) and frame.containsx(box.x1)
            inside = inside and frame.containsy(box.y0) and frame.containsy(box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def label_log(axis: Axis, low: float, high: float) -> None:
    """Label a logarithmic axis with a few round numbers in plain notation."""
    locator: Locator = MaxNLocator(4)
    if (ratio := high / low) > 10:
        steps = (1.0, 2.0, 5.0) if ratio < 50 else (1.0, 3.0) if ratio < 1e4 else (1.0,)
        locator = LogLocator(subs=steps, numticks=6)
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

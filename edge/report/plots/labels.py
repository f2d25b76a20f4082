"""Names beside points, moved until they cover neither points nor each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from edge.report.figure import DARK_GREY

Place = tuple[float, float]
Side = Literal["left", "right", "center"]
# Right, left, above, below, then further away; in points.
SIDES: tuple[tuple[int, int, Side], ...] = (
    (1, 0, "left"),
    (-1, 0, "right"),
    (0, 1, "center"),
    (0, -1, "center"),
)
CORNERS: tuple[tuple[int, int, Side], ...] = (
    (1, 1, "left"),
    (-1, 1, "right"),
    (1, -1, "left"),
    (-1, -1, "right"),
)
DISTANCES_PT = (10, 18, 28, 40, 54, 70, 90, 112)
POINT_PIXELS = 9


def place_labels(
    figure: Figure,
    axes: Axes,
    points: Sequence[Place],
    texts: Sequence[str],
    lines: Sequence[tuple[Place, Place]] = (),
) -> None:
    """Write each text at the first place near its point that is free.

    Args:
        figure: what it is drawn in.
        axes: whose limits are set.
        points: where the points are.
        texts: of each.
        lines: upright or level ones that no text should cover, such as error bars.
    """
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    pixels = [axes.transData.transform(place) for place in points]
    taken = [Bbox.from_bounds(x - POINT_PIXELS, y - POINT_PIXELS, 18, 18) for x, y in pixels]
    taken += [Bbox(axes.transData.transform(ends)).padded(1.5) for ends in lines]
    for point, text in zip(points, texts, strict=True):
        taken.append(_place(axes, point, text, taken))


def _place(axes: Axes, point: Place, text: str, taken: list[Bbox]) -> Bbox:
    """The box it has then; where nothing is free, the last place tried."""
    note = axes.annotate(
        text, point, xytext=(0, 0), textcoords="offset points", fontsize=8, va="center"
    )
    note.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5})
    box = Bbox.null()
    for distance in DISTANCES_PT:
        for dx, dy, side in SIDES + CORNERS:
            box = _try(note, distance * dx, distance * dy, side)
            if _inside(axes, box) and not any(box.overlaps(other) for other in taken):
                _lead(axes, point, note, distance)
                return box
    return box


def _try(note: Annotation, dx: float, dy: float, side: Side) -> Bbox:
    note.set_position((dx, dy))
    note.set_horizontalalignment(side)
    return note.get_window_extent().padded(1.5)


def _inside(axes: Axes, box: Bbox) -> bool:
    frame = axes.get_window_extent()
    return bool(
        box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
    )


def _lead(axes: Axes, point: Place, note: Annotation, distance: float) -> None:
    """A thin line to a label that lies far off."""
    if distance > DISTANCES_PT[1]:
        axes.annotate(
            "",
            point,
            xytext=note.get_position(),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": DARK_GREY, "linewidth": 0.6},
            zorder=1.5,
        )

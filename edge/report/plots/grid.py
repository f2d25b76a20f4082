"""Small panels, one per row of a profile, on shared axes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edge.report.figure import new_figure
from edge.report.plots.view import RowView

COLUMNS = 3
TITLE_CHARACTERS = 34


def panels(
    name: str, rows: Sequence[RowView], x_label: str, y_label: str, height_in: float = 1.7
) -> tuple[Figure, list[Axes]]:
    """A figure with a titled panel per row, scales shared by all."""
    columns = min(COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = new_figure(name, 0.5 + height_in * lines)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    axes = [panel for line in grid for panel in line]
    for unused in axes[len(rows) :]:
        unused.set_visible(False)
    for row, panel in zip(rows, axes, strict=False):
        panel.set_title(textwrap.fill(_short(row.label), TITLE_CHARACTERS), fontsize=8)
        panel.grid()
    for panel in _lowest(axes[: len(rows)], columns):
        panel.xaxis.set_tick_params(labelbottom=True)
        panel.set_xlabel(x_label, fontsize=8)
    for panel in axes[: len(rows) : columns]:
        panel.set_ylabel(y_label, fontsize=8)
    return figure, axes[: len(rows)]


def _lowest(axes: Sequence[Axes], columns: int) -> Iterator[Axes]:
    return iter(axes[-columns:])


def _short(label: str) -> str:
    most = 2 * TITLE_CHARACTERS
    return label if len(label) <= most else f"{label[: most - 1]}…"

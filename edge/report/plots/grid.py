"""Small panels, one per row of a profile, on shared axes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edge.report.figure import DARK_GREY, new_figure
from edge.report.plots.view import RowView

COLUMNS = 3
LABEL_CHARACTERS = 34


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
        panel.set_title(folded(row.heading), fontsize=8)
        panel.grid()
    for panel in axes[: len(rows)][-columns:]:
        panel.xaxis.set_tick_params(labelbottom=True)
    for panel in grid[-1]:
        panel.set_xlabel(x_label, fontsize=8)
    for panel in axes[: len(rows) : columns]:
        panel.set_ylabel(y_label, fontsize=8)
    return figure, axes[: len(rows)]


def folded(label: str) -> str:
    """A label in one line or two, so that it leaves room for what it is of."""
    lines = textwrap.wrap(label, LABEL_CHARACTERS)
    return "\n".join(lines[:2] if len(lines) < 3 else [lines[0], f"{lines[1][:-1]}…"])


def part_workloads(axes: Axes, rows: Sequence[RowView]) -> None:
    """A line between bars of one workload and those of the next."""
    for y, (above, below) in enumerate(pairwise(rows)):
        if above.workload != below.workload:
            axes.axhline(y + 0.5, color=DARK_GREY, linewidth=0.6, linestyle=":")

"""What stands around a plot's panels: heading, legend, caption, provenance, and room for them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from edge.report.figure import DARK_GREY, LEGEND_PT, plain, provenance, to_svg

TITLE_PT, NOTE_PT = 11, 7
# Of DejaVu Sans at NOTE_PT, as many as an inch holds.
NOTE_CHARACTERS_PER_INCH = 17
EDGE_IN = 0.06


@dataclass(frozen=True)
class _Around:
    """What stands around the panels, and how high each part is, in inches."""

    heading: Text
    notes: Text
    body_in: float
    title_in: float
    legend_in: float
    notes_in: float


@dataclass(frozen=True)
class NamedFigure:
    """A plot: `name` for files and ids, `caption` for n, spread and what is missing."""

    name: str
    title: str
    caption: str = field(repr=False)
    provenance: str = field(repr=False)
    figure: Figure = field(repr=False)
    around: _Around = field(repr=False)

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return to_svg(self.figure)

    @contextmanager
    def bare(self) -> Iterator[Figure]:
        """Panels and legend alone, for a page that says the rest in words of its own."""
        _lay_out(self.figure, self.around, whole=False)
        try:
            yield self.figure
        finally:
            _lay_out(self.figure, self.around, whole=True)


def finish(
    figure: Figure,
    title: str,
    caption: str,
    profile: Mapping[str, Any],
    handles: Sequence[Any],
    *absent: str,
) -> NamedFigure:
    """Title and legend above, caption, what is missing and provenance beneath.

    The figure grows by what they take, so that its panels keep their size.

    Args:
        figure: drawn, of `new_figure`.
        title: what is shown.
        caption: a few sentences: n, spread, how to read it.
        profile: whose provenance it is.
        handles: of the legend; none makes no legend.
        absent: a sentence for each thing that was not measured.
    """
    caption = " ".join((caption, *absent))
    heading = f"{title}: {plain(profile['model']['name'])} on {plain(profile['device']['name'])}"
    source = provenance(profile)
    around = _frame(figure, heading, (caption, source), handles)
    return NamedFigure(str(figure.get_label()), title, caption, source, figure, around)


def _frame(
    figure: Figure, heading: str, paragraphs: Sequence[str], handles: Sequence[Any]
) -> _Around:
    """Write what stands around the panels, and make room for it."""
    width_in, body_in = figure.get_size_inches()
    width = int(width_in * NOTE_CHARACTERS_PER_INCH)
    heading = textwrap.fill(heading, int(width * 0.6))
    under = "\n".join(textwrap.fill(paragraph, width) for paragraph in paragraphs)
    columns = _legend_columns([str(handle.get_label()) for handle in handles], width_in)
    around = _Around(
        heading=figure.text(
            0.01, 1, heading, ha="left", va="top", fontweight="bold", fontsize=TITLE_PT
        ),
        notes=figure.supxlabel(under, fontsize=NOTE_PT, color=DARK_GREY, x=0.01, ha="left"),
        body_in=body_in,
        title_in=0.08 + _lines_in(heading.count("\n") + 1, TITLE_PT),
        legend_in=_lines_in(-(-len(handles) // columns), LEGEND_PT * 1.15) + EDGE_IN,
        notes_in=_lines_in(under.count("\n") + 1, NOTE_PT) + 0.08,
    )
    if handles:
        figure.legend(handles=handles, ncols=columns, loc="upper left", borderaxespad=0)
    _lay_out(figure, around, whole=True)
    return around


def _lay_out(figure: Figure, around: _Around, whole: bool) -> None:
    """Give the figure its height, everything its place, and keep the panels out of the top."""
    title_in, notes_in = (around.title_in, around.notes_in) if whole else (EDGE_IN / 2, 0.0)
    height_in = title_in + around.legend_in + around.body_in + notes_in
    figure.set_size_inches(figure.get_figwidth(), height_in)
    for text in (around.heading, around.notes):
        text.set_visible(whole)
        text.set_in_layout(whole)
    around.heading.set_y(1 - EDGE_IN / height_in)
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0.005, 1 - title_in / height_in))
    layout = figure.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        layout.set(rect=(0, 0, 1, 1 - (title_in + around.legend_in) / height_in))


def _lines_in(lines: int, size_pt: float) -> float:
    """The height of so many lines of text, in inches."""
    return lines * 1.3 * size_pt / 72


def _legend_columns(labels: Sequence[str], width_in: float) -> int:
    """As many as fit beside each other; a legend is filled column by column."""
    for columns in range(len(labels), 1, -1):
        lines, longer = divmod(len(labels), columns)
        starts = [n * lines + min(n, longer) for n in range(columns + 1)]
        parts = [labels[a:b] for a, b in pairwise(starts)]
        if sum(0.55 + 0.072 * max(map(len, part)) for part in parts) <= width_in:
            return columns
    return 1

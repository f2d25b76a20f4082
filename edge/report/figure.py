"""Figures: colours, style, heading and notes around the panels, SVG and PNG.

Text in figures comes from untrusted profiles: it passes `plain` and is not parsed as markup or
mathematics.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Any, cast

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.text import Text

from edge.profile.profile import Profile
from edge.report.table import provenance, title
from edge.text import plain

# Okabe and Ito's colour-blind safe palette.
BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
VERMILLION, PURPLE, YELLOW = "#D55E00", "#CC79A7", "#F0E442"
GREY, DARK_GREY, INK = "#999999", "#555555", "#222222"
# One colour per engine in every figure; vermillion is reserved for errors.
COLOURS = {"mlx": BLUE, "mlx-lm": SKY, "llama.cpp": ORANGE}
ERROR = VERMILLION
WIDTH_IN, EDGE_IN = 8.0, 0.06
# A CI over two processes can be huge; axes are clipped to this multiple of the medians.
MOST_OF_AXIS = 1.6
TITLE_PT, LEGEND_PT, NOTE_PT = 11, 8, 7
# DejaVu Sans at NOTE_PT.
NOTE_CHARACTERS_PER_INCH = 17
STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "sans-serif",
    # DejaVu Sans comes with matplotlib; a browser uses the first that is installed.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": DARK_GREY,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "legend.fontsize": LEGEND_PT,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "svg.fonttype": "none",
    "hatch.linewidth": 0.6,
}
TAG = re.compile(r"<[A-Za-z][^<>]*>")
COORDINATES = re.compile(r'\b(?:d|x|y)="[^"]*"')
# Hundredths of a point are finer than a pixel.
DIGITS = re.compile(r"(\.\d\d)\d+")
REFERENCE = re.compile(r'(\bid="|(?:xlink:)?href="#|url\(#)([^")]+)')


@dataclass(frozen=True)
class NamedFigure:
    """A plot: `name` for files and ids, `caption` with n, spread and missing rows.

    `heights_in` are the heights of heading, legend, panels and notes.
    """

    name: str
    title: str
    caption: str = field(repr=False)
    provenance: str = field(repr=False)
    figure: Figure = field(repr=False)
    words: tuple[Text, Text] = field(repr=False)
    heights_in: tuple[float, float, float, float] = field(repr=False)

    def svg(self, prefix: str = "") -> str:
        """The whole figure; with a prefix of its ids only panels and legend, for a page."""
        self._lay_out(whole=not prefix)
        return _to_svg(self.figure, prefix + self.name)

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self._lay_out(whole=True)
        with style():
            FigureCanvasAgg(self.figure)
            self.figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return buffer.getvalue()

    def _repr_svg_(self) -> str:
        return self.svg()

    def _lay_out(self, whole: bool) -> None:
        """Set the height and place panels below the legend, with or without heading and notes."""
        title_in, legend_in, body_in, notes_in = self.heights_in
        if not whole:
            title_in, notes_in = EDGE_IN / 2, 0.0
        height_in = title_in + legend_in + body_in + notes_in
        self.figure.set_figheight(height_in)
        for text in self.words:
            text.set_visible(whole)
            text.set_in_layout(whole)
        self.words[0].set_y(1 - EDGE_IN / height_in)
        for legend in self.figure.legends:
            legend.set_bbox_to_anchor((0.005, 1 - title_in / height_in))
        layout = cast(ConstrainedLayoutEngine, self.figure.get_layout_engine())
        layout.set(rect=(0, 0, 1, 1 - (title_in + legend_in) / height_in))


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for drawing and saving, independent of the user's."""
    with warnings.catch_warnings(), matplotlib.rc_context():
        # Characters that DejaVu Sans lacks are valid in names.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, STYLE))
        yield


def new_figure(height_in: float) -> Figure:
    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def finish(
    figure: Figure,
    name: str,
    what: str,
    profile: Profile,
    handles: Sequence[Any],
    *sentences: str,
) -> NamedFigure:
    """Add heading (`what` and the title) and legend above, caption and provenance beneath.

    The caption's `sentences` state n, spread, and what was not measured.
    """
    caption, source = " ".join(sentences), provenance(profile)
    width = int(WIDTH_IN * NOTE_CHARACTERS_PER_INCH)
    heading = textwrap.fill(f"{what}: {title(profile)}", int(width * 0.6))
    under = "\n".join(textwrap.fill(paragraph, width) for paragraph in (caption, source))
    columns = legend_columns([str(handle.get_label()) for handle in handles])
    if handles:
        figure.legend(handles=handles, ncols=columns, loc="upper left", borderaxespad=0)
    look: dict[str, Any] = {"ha": "left", "va": "top", "fontweight": "bold"}
    words = (
        figure.text(0.01, 1, heading, fontsize=TITLE_PT, **look),
        figure.supxlabel(under, fontsize=NOTE_PT, color=DARK_GREY, x=0.01, ha="left"),
    )
    heights_in = (
        0.08 + _lines_in(heading.count("\n") + 1, TITLE_PT),
        _lines_in(-(-len(handles) // columns), LEGEND_PT * 1.15) + EDGE_IN,
        figure.get_figheight(),
        _lines_in(under.count("\n") + 1, NOTE_PT) + 0.08,
    )
    return NamedFigure(name, what, caption, source, figure, words, heights_in)


def _lines_in(lines: int, size_pt: float) -> float:
    return lines * 1.3 * size_pt / 72


def legend_columns(labels: Sequence[str]) -> int:
    """Columns of a legend that fit into the width; it is filled column by column."""
    for columns in range(len(labels), 1, -1):
        lines, longer = divmod(len(labels), columns)
        starts = [n * lines + min(n, longer) for n in range(columns + 1)]
        parts = [labels[a:b] for a, b in pairwise(starts)]
        if sum(0.55 + 0.072 * max(map(len, part)) for part in parts) <= WIDTH_IN:
            return columns
    return 1


def colour_of(engine: str) -> str:
    return COLOURS.get(engine, GREY)


def engine_handles(engines: Sequence[str], *others: Any) -> list[Any]:
    """Legend entries: the engines' colours, then others."""
    known = [engine for engine in COLOURS if engine in engines]
    unknown = sorted(set(engines) - set(COLOURS))
    return [*(Patch(color=colour_of(e), label=plain(e, 30)) for e in known + unknown), *others]


def _to_svg(figure: Figure, name: str) -> str:
    """One `<svg>` element without XML prolog, time stamp and style rules; text stays text.

    Equal for equal figures. Ids begin with `name`, so that a page can have several figures.
    """
    buffer = io.StringIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'\s*<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)
    # Only in tags: text can look like an id, but contains no unescaped "<".
    text = TAG.sub(lambda tag: _own_tag(tag[0], name), text)
    label = escape(" ".join(figure.texts[0].get_text().split()))
    return text.replace(
        "<svg ", f'<svg role="img" aria-label="{label}" stroke-linejoin="round" ', 1
    )


def _own_tag(tag: str, name: str) -> str:
    """The tag with ids and references that begin with `name`, and rounded coordinates."""
    tag = COORDINATES.sub(lambda found: DIGITS.sub(r"\1", found[0]), tag)
    return REFERENCE.sub(rf"\g<1>{name}-\g<2>", tag)

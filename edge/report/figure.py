"""What all plots share: colours, type, provenance, SVG and PNG.

Figures are drawn with matplotlib's object interface: no state, no display. Text in them comes
from profiles of strangers: it passes `plain` and is never read as markup or mathematics.
"""

from __future__ import annotations

import io
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Patch

# Okabe and Ito's palette, distinct for colour-blind readers.
BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
VERMILLION, PURPLE, YELLOW, BLACK = "#D55E00", "#CC79A7", "#F0E442", "#000000"
GREY, DARK_GREY, INK = "#999999", "#555555", "#222222"
# One colour per engine in every figure. Vermillion is kept for what is wrong.
COLOURS = {"mlx": BLUE, "mlx-lm": SKY, "llama.cpp": ORANGE}
ERROR = VERMILLION
WIDTH_IN = 8.0
LEGEND_PT = 8
STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "sans-serif",
    # The first travels with matplotlib and measures the text; a page takes what it has.
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
# Those that reorder what stands around them, and the invisible rest of their kind.
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
TAG = re.compile(r"<[A-Za-z][^<>]*>")
COORDINATES = re.compile(r'\b(?:d|x|y)="[^"]*"')
# Hundredths of a point are finer than any screen.
DIGITS = re.compile(r"(\.\d\d)\d+")
REFERENCE = re.compile(r'(\bid="|(?:xlink:)?href="#|url\(#)([^")]+)')


@contextmanager
def style() -> Iterator[None]:
    """Draw and save inside: the same look and no mathematics, whatever the user's settings."""
    with warnings.catch_warnings(), matplotlib.rc_context():
        # A name in a script that the measuring font lacks is still a name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, STYLE))
        yield


def new_figure(name: str, height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """An empty figure whose SVG ids will begin with `name`."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    figure.set_label(name)
    return figure


def provenance(profile: Mapping[str, Any]) -> str:
    """What it was measured on, with what, when: one line for under a figure."""
    device, software = profile["device"], profile["software"]
    names = ("mlx", "mlx-lm", "llama-cpp-python")
    engines = [f"{name} {plain(software[name], 40)}" for name in names if name in software]
    sources = {plain(p["source"], 30) for row in profile["rows"] if (p := _power_of(row))}
    power = f"power: {', '.join(sorted(sources))}" if sources else "power not measured"
    parts = (
        plain(device["name"], 60),
        plain(device.get("os") or "system not recorded", 60),
        f"edge {plain(software.get('edge') or 'of unknown version', 40)}{_commit(software)}",
        *engines,
        power,
        plain(profile["created_utc"], 30),
    )
    synthetic = profile["model"].get("synthetic") is True
    return ", ".join(parts) + ("; random weights" if synthetic else "")


def _commit(software: Mapping[str, Any]) -> str:
    """The checkout's commit, in short, where the profile has it."""
    revision = software.get("edge-revision")
    if not isinstance(revision, str):
        return ""
    commit, _, changed = revision.partition("-")
    return f" ({plain(commit[:9], 9)}{', changed' if changed else ''})"


def _power_of(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    power = row.get("power")
    return power if isinstance(power, Mapping) and "source" in power else None


def plain(text: object, most: int = 80) -> str:
    """A stranger's text as one line that any output can hold, cut to `most` characters.

    Control characters, lone surrogates and marks that turn the direction of writing become a
    replacement character; white space becomes one space.
    """
    words = " ".join(str(text)[: 20 * most].split())
    seen = "".join("\N{REPLACEMENT CHARACTER}" if _unseen(c) else c for c in words)
    return seen if len(seen) <= most else f"{seen[: most - 1].rstrip()}…"


def _unseen(character: str) -> bool:
    return unicodedata.category(character) in UNSEEN


def colour_of(engine: str) -> str:
    """The engine's, in every figure the same; grey for one that nobody knows."""
    return COLOURS.get(engine, GREY)


def bar_look(engine: str, wrong: bool) -> dict[str, Any]:
    """A bar in its engine's colour; hatched where the figure must not be taken for one."""
    if wrong:
        return {"color": "white", "edgecolor": ERROR, "hatch": "////"}
    return {"color": colour_of(engine), "edgecolor": "none"}


def wrong_handle(label: str) -> Patch:
    """What a hatched bar means, for the legend."""
    return Patch(facecolor="white", edgecolor=ERROR, hatch="////", label=label)


def engine_handles(engines: Sequence[str], *others: Any) -> list[Any]:
    """A legend's entries: the engines' colours, then others."""
    known = [engine for engine in COLOURS if engine in engines]
    unknown = sorted(set(engines) - set(COLOURS))
    handles: list[Any] = [Patch(color=colour_of(e), label=plain(e, 30)) for e in known + unknown]
    return [*handles, *others]


def say_missing(axes: Axes, sentence: str) -> None:
    """An empty panel that says why it is empty."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    text = textwrap.fill(f"not measured: {sentence}", 36)
    look: dict[str, Any] = {"ha": "center", "va": "center", "color": DARK_GREY, "fontsize": 8}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, **look)


def to_svg(figure: Figure) -> str:
    """The figure as one `<svg>` element, text as text, equal for equal figures.

    Its ids begin with the figure's name, so that several fit into one page; it carries no
    style rules that could reach beyond it, no time stamp and no XML prolog. It is a file too.
    """
    name = str(figure.get_label()) or "figure"
    buffer = io.StringIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'\s*<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)
    # Only inside tags: text may look like an id, but never holds a bare "<".
    text = TAG.sub(lambda tag: _own_tag(tag[0], name), text)
    label = escape(" ".join(figure.texts[0].get_text().split()) if figure.texts else name)
    return text.replace(
        "<svg ", f'<svg role="img" aria-label="{label}" stroke-linejoin="round" ', 1
    )


def _own_tag(tag: str, name: str) -> str:
    """Ids and references under the figure's name, coordinates no finer than can be seen."""
    tag = COORDINATES.sub(lambda found: DIGITS.sub(r"\1", found[0]), tag)
    return REFERENCE.sub(rf"\g<1>{name}-\g<2>", tag)


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file, 150 dots per inch."""
    buffer = io.BytesIO()
    with style():
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()

"""One self-contained HTML page: everything inline, nothing fetched, every text of a profile text.

The template escapes whatever it is given. Two things go in as they are: the plots, whose text
the SVG writer escapes, and the profiles as JSON, in which no `<` is left. Behind that stands a
policy that lets the browser run the page's own script, known by its hash, and fetch nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import edge
from edge.report.figure import to_svg
from edge.report.frame import NamedFigure
from edge.report.page.section import section_of

# In JSON these stand only within strings, where an escape means the same.
UNSAFE_IN_SCRIPT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render_page(
    profiles: Sequence[Mapping[str, Any]],
    drawn: Sequence[Sequence[NamedFigure]] | None = None,
) -> str:
    """The page, complete.

    Args:
        profiles: plain data, as `read_for_report` gives it; one after the other on the page.
        drawn: each profile's figures, where they are drawn already.
    """
    from edge.report.plots import figures

    drawn = [figures(profile) for profile in profiles] if drawn is None else drawn
    sections = [
        section_of(number, profile, _plots(number, shown))
        for number, (profile, shown) in enumerate(zip(profiles, drawn, strict=True), 1)
    ]
    style, script = _part("style.css"), _part("script.js")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        _part("template.html")
    )
    return template.render(
        title=sections[0].title if len(sections) == 1 else "Device reports",
        sections=sections,
        edge_version=edge.__version__,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        data=Markup(script_json(profiles)),
    )


def script_json(value: object) -> str:
    """JSON that cannot end the script element it stands in, nor begin a comment there.

    Raises:
        ValueError: a number is no JSON; `read_for_report` refuses those.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(UNSAFE_IN_SCRIPT)


def _plots(number: int, drawn: Sequence[NamedFigure]) -> list[dict[str, Any]]:
    """Name, title, caption, provenance and SVG of each plot."""
    return [
        {
            "name": plot.name,
            "title": plot.title,
            "caption": plot.caption,
            "provenance": plot.provenance,
            "svg": Markup(_svg(number, plot)),
        }
        for plot in drawn
    ]


def _svg(number: int, plot: NamedFigure) -> str:
    """Without the words that the page has itself; ids differ between the page's profiles."""
    with plot.bare() as figure:
        figure.set_label(f"p{number}-{plot.name}")
        svg = to_svg(figure)
        figure.set_label(plot.name)
    return svg


def _policy(style: str, script: str) -> str:
    """No network at all. Matplotlib sets style attributes; the plain rule is for old browsers."""
    rules = (
        "default-src 'none'",
        f"script-src {_hash(script)}",
        "style-src 'unsafe-inline'",
        f"style-src-elem {_hash(style)}",
        "style-src-attr 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(rules)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _part(name: str) -> str:
    """A file of the page; a script's hash counts every character, so none is added or lost."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")

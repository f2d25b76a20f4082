"""All files of a report: page, tables, plots."""

from collections.abc import Iterator, Sequence

from edge.profile.profile import Profile
from edge.report.page import Source, render_page
from edge.report.plots import draw
from edge.report.table import csv_table, markdown_section


def report_files(read: Sequence[tuple[Profile, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Each file's place in the report's folder and its content, of profiles and their bytes."""
    sources = [Source(profile, draw(profile), data) for profile, data in read]
    profiles = [profile for profile, _ in read]
    yield "report.html", render_page(sources).encode()
    yield "table.md", "\n".join(map(markdown_section, profiles)).encode()
    yield "table.csv", csv_table(profiles).encode()
    for number, source in enumerate(sources, 1):
        prefix = f"{number}-" if len(sources) > 1 else ""
        for plot in source.drawn.figures:
            yield f"plots/{prefix}{plot.name}.svg", plot.svg().encode()
            yield f"plots/{prefix}{plot.name}.png", plot.png()

"""The Markdown that is printed, saved and copied: table, then what it leaves open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edge.report.figure import provenance
from edge.report.lines import markdown_of, table_of
from edge.report.table import notes
from edge.report.tidy import tidy

# What would begin a link, an image, a tag, code or another cell. Underscores within words,
# as in Q5_K_M, mean nothing.
MARKUP = re.compile(r"[\\`*\[\]<>|~&]")


def markdown_report(profiles: Sequence[Mapping[str, Any]]) -> str:
    """A section per profile; text of the profiles stays text in any Markdown viewer.

    Args:
        profiles: plain data, as `read_profile` gives it.
    """
    return "\n".join(markdown_section(profile) for profile in profiles)


def markdown_section(profile: Mapping[str, Any]) -> str:
    """Heading, table, notes and provenance of one profile; ends with a line end."""
    safe = tidy(profile)
    parts = (
        f"### {escape_markdown(title_of(safe))}",
        markdown_table(profile) if safe["rows"] else "No row was measured.",
        "\n".join(f"- {escape_markdown(note)}" for note in notes(safe)),
        escape_markdown(provenance(profile)),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(profile: Mapping[str, Any]) -> str:
    """The profile's rows as an aligned table, medians ± standard deviation.

    Columns that no row has anything for, or all have the same, are left out: the workload where
    there is one, energy where nothing measured it, the bandwidth where it is no ceiling.
    """
    table = table_of(tidy(profile))
    lines = [[escape_markdown(cell.text) for cell in line] for line in table.lines]
    return markdown_of(table.head, table.numeric, lines)


def title_of(profile: Mapping[str, Any]) -> str:
    """What a tidy profile is of."""
    return f"{profile['model']['name']} on {profile['device']['name']}"


def escape_markdown(text: str) -> str:
    """Text that a viewer shows as it is."""
    return MARKUP.sub(r"\\\g<0>", text)
